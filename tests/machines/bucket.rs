//! Buckets of a test's own: one in memory, and one in a temporary directory.

use super::conformance::Place;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use treelock::bucket::{BucketTreeLock, look};
use treelock::machine::{EngineError, Options};
use treelock::{Snapshot, TreePath};

pub(crate) const PREFIX: &str = "locks/test";

/// Begins the namespace, which is closed for the time to live of the first client; the next client says another one.
pub(crate) fn open_quickly(store: &Arc<dyn ObjectStore>, lives: Duration) {
    let options = Options::new().time_to_live(lives);
    let lock: BucketTreeLock = BucketTreeLock::open(Arc::clone(store), PREFIX, options).unwrap();
    drop(lock.write("a").unwrap());
}

pub(crate) struct Memory(Arc<dyn ObjectStore>);

impl Place for Memory {
    type Lock<P: ?Sized + TreePath + 'static> = BucketTreeLock<P>;

    fn begin() -> Option<Self> {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        open_quickly(&store, Duration::from_millis(50));
        Some(Memory(store))
    }

    fn try_open_as<P: ?Sized + TreePath + 'static>(
        &self,
        options: Options,
    ) -> Result<BucketTreeLock<P>, EngineError> {
        BucketTreeLock::open(Arc::clone(&self.0), PREFIX, options)
    }

    fn look(&self) -> Option<Snapshot> {
        look(Arc::clone(&self.0), PREFIX).unwrap()
    }
}

pub(crate) struct Directory {
    pub(crate) store: Arc<dyn ObjectStore>,
    _directory: TempDir,
}

impl Place for Directory {
    type Lock<P: ?Sized + TreePath + 'static> = BucketTreeLock<P>;

    fn begin() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(directory.path()).unwrap());
        open_quickly(&store, Duration::from_millis(50));
        Some(Directory { store, _directory: directory })
    }

    fn try_open_as<P: ?Sized + TreePath + 'static>(
        &self,
        options: Options,
    ) -> Result<BucketTreeLock<P>, EngineError> {
        BucketTreeLock::open(Arc::clone(&self.store), PREFIX, options)
    }

    fn look(&self) -> Option<Snapshot> {
        look(Arc::clone(&self.store), PREFIX).unwrap()
    }
}
