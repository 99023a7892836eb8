//! Buckets of a test's own: one in memory, and one in a temporary directory.

use super::conformance::Place;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use std::sync::Arc;
use tempfile::TempDir;
use treelock::bucket::{BucketTreeLock, look};
use treelock::machine::{EngineError, Options};
use treelock::{Snapshot, TreePath};

pub(crate) const PREFIX: &str = "locks/test";

pub(crate) struct Memory(pub(crate) Arc<dyn ObjectStore>);

impl Place for Memory {
    type Lock<P: ?Sized + TreePath + 'static> = BucketTreeLock<P>;

    fn start() -> Option<Self> {
        Some(Memory(Arc::new(InMemory::new())))
    }

    fn try_open_as<P: ?Sized + TreePath + 'static>(
        &self,
        options: Options,
    ) -> Result<BucketTreeLock<P>, EngineError> {
        BucketTreeLock::open(Arc::clone(&self.0), PREFIX, options)
    }

    fn url(&self) -> String {
        unreachable!("no other process sees it")
    }

    fn look(&self) -> Option<Snapshot> {
        look(Arc::clone(&self.0), PREFIX).unwrap()
    }
}

pub(crate) struct Directory {
    pub(crate) store: Arc<dyn ObjectStore>,
    directory: TempDir,
}

impl Place for Directory {
    type Lock<P: ?Sized + TreePath + 'static> = BucketTreeLock<P>;

    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn ObjectStore> = Arc::new(LocalFileSystem::new_with_prefix(directory.path()).unwrap());
        Some(Directory { store, directory })
    }

    fn try_open_as<P: ?Sized + TreePath + 'static>(
        &self,
        options: Options,
    ) -> Result<BucketTreeLock<P>, EngineError> {
        BucketTreeLock::open(Arc::clone(&self.store), PREFIX, options)
    }

    fn url(&self) -> String {
        format!("file://{}/{PREFIX}", self.directory.path().display())
    }

    fn look(&self) -> Option<Snapshot> {
        look(Arc::clone(&self.store), PREFIX).unwrap()
    }
}
