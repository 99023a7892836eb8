//! The objects: how they are filled, read and changed, and what must be so at any time.

use crate::fences::Fences;
use crate::lock::{Guard, Roots};
use futures::{TryStreamExt, executor::block_on};
use object_store::memory::InMemory;
pub(crate) use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::{fs, io, thread};

pub(crate) const SHELVES: [&str; 4] = ["inbox", "work", "archive", "backup"];
/// The folder of the intents; see `intents.rs`. It is on no shelf.
pub(crate) const INTENTS: &str = ".intents";

/// Where the lock is, with `--bucket`.
pub(crate) const LOCKS: &str = ".locks";
/// Directories that tools make, and make large.
const LEFT_OUT: [&str; 2] = [".git", "target"];
const LARGEST_FILE: u64 = 1 << 20;
const LARGEST_LOAD: u64 = 256 << 20;

/// What was loaded, which the checks compare with. Keys are relative to the directory, that is to a shelf.
#[derive(Default)]
pub(crate) struct Originals {
    pub(crate) files: BTreeMap<Key, Vec<u8>>,
    /// Every directory that has files below it, with the number of those directly in it.
    pub(crate) folders: BTreeMap<Key, usize>,
    pub(crate) bytes: u64,
    pub(crate) left_out: usize,
}

impl Originals {
    /// Those of a directory, which are not none.
    pub(crate) fn of(directory: &Path) -> Result<Self, String> {
        let mut originals = Originals::default();
        let shown = directory.display();
        originals.load(directory, &Key::ROOT).map_err(|error| format!("cannot read {shown}: {error}"))?;
        if originals.files.is_empty() {
            return Err(format!("no files to work on in {shown}"));
        }
        Ok(originals)
    }

    pub(crate) fn print(&self) {
        let Originals { files, folders, bytes, left_out } = self;
        println!("files: {}, folders: {}, bytes: {bytes}, left out: {left_out}", files.len(), folders.len());
    }

    /// Reads the files below `directory`. What cannot be read or named inside of it is left out.
    fn load(&mut self, directory: &Path, folder: &Key) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let loaded = match entry.file_name().to_str() {
                Some(name) if kind.is_file() => self.load_file(&entry.path(), folder.clone().join(name)),
                Some(name) if kind.is_dir() && !LEFT_OUT.contains(&name) => {
                    self.load(&entry.path(), &folder.clone().join(name))
                }
                _ => Err(io::ErrorKind::Unsupported.into()),
            };
            self.left_out += usize::from(loaded.is_err());
        }
        Ok(())
    }

    fn load_file(&mut self, path: &Path, key: Key) -> io::Result<()> {
        let size = fs::metadata(path)?.len();
        if size > LARGEST_FILE.min(LARGEST_LOAD - self.bytes) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.add(key, fs::read(path)?);
        Ok(())
    }

    pub(crate) fn add(&mut self, key: Key, content: Vec<u8>) {
        self.bytes += content.len() as u64;
        let mut ancestor = key.parent();
        let mut files = 1;
        while let Some(folder) = ancestor {
            ancestor = folder.parent();
            *self.folders.entry(folder).or_default() += files;
            files = 0;
        }
        self.files.insert(key, content);
    }
}

/// The objects, and what is known of them.
pub(crate) struct Store {
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// None where no lease can be lost.
    pub(crate) fences: Option<Fences>,
    pub(crate) originals: Originals,
}

/// Why an operation cannot go on.
pub(crate) enum Fault {
    /// A rule is broken: this is what was seen.
    Torn(String),
    /// The lease is lost, so others may have been let in: what was seen does not count, and nothing may be written.
    Late(Late),
    /// The store, or the lock, did not do what it was asked for.
    Failed(String),
}

/// Who has told that the lease is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// The clock of this machine, in time.
    Guard,
    /// The store, by the fence: the write came too late.
    Store,
}

impl From<object_store::Error> for Fault {
    fn from(error: object_store::Error) -> Self {
        match error {
            object_store::Error::NotFound { path, .. } => Fault::Torn(format!("{path} was listed, then it was gone")),
            other => Fault::Failed(format!("the store failed: {other}")),
        }
    }
}

impl From<Fault> for String {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Torn(seen) => seen,
            Fault::Late(_) => "the lease is lost".into(),
            Fault::Failed(error) => error,
        }
    }
}

/// What is below a folder.
#[derive(Default)]
pub(crate) struct Survey {
    /// Relative to their shelf.
    pub(crate) files: BTreeSet<Key>,
    pub(crate) objects: usize,
    /// What breaks rule 1 or 2.
    pub(crate) torn: Vec<String>,
}

impl Survey {
    /// The number of objects, if none of the folders is torn.
    pub(crate) fn whole(self) -> Result<usize, Fault> {
        self.torn.into_iter().next().map_or(Ok(self.objects), |seen| Err(Fault::Torn(seen)))
    }
}

impl Store {
    pub(crate) fn in_memory(originals: Originals) -> Self {
        Store { objects: Arc::new(InMemory::new()), fences: None, originals }
    }

    pub(crate) fn fill(&self) -> Result<(), Fault> {
        for (file, content) in &self.originals.files {
            self.ask(self.objects.put(&place(SHELVES[0], file), content.clone().into()))?;
        }
        Ok(())
    }

    /// Makes one request. A real store takes a while for it; one in memory does not, so this lets other threads run.
    pub(crate) fn ask<T>(&self, request: impl Future<Output = object_store::Result<T>>) -> Result<T, Fault> {
        thread::yield_now();
        Ok(block_on(request)?)
    }

    /// Makes a request for an object that need not be there.
    pub(crate) fn ask_if_there<T>(
        &self,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<Option<T>, Fault> {
        match block_on(request) {
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            other => Ok(Some(other?)),
        }
    }

    /// Those on the shelves.
    pub(crate) fn keys_below(&self, folder: &Key) -> Result<Vec<Key>, Fault> {
        let mut keys = self.list(folder)?;
        keys.retain(|key| [INTENTS, LOCKS].iter().all(|&other| !key.prefix_matches(&other.into())));
        Ok(keys)
    }

    pub(crate) fn list(&self, folder: &Key) -> Result<Vec<Key>, Fault> {
        self.ask(self.objects.list(Some(folder)).map_ok(|object| object.location).try_collect())
    }

    pub(crate) fn read(&self, key: &Key) -> Result<Vec<u8>, Fault> {
        self.ask(async { Ok(self.objects.get(key).await?.bytes().await?.into()) })
    }

    /// Writes what `key` has to `to`. (The store's own copy would do, if `LocalFileSystem` did not leave a file behind
    /// whenever that overwrites a copy of the same object.)
    pub(crate) fn copy(&self, key: &Key, to: &Key, guard: &Guard) -> Result<(), Fault> {
        let content = self.read(key)?;
        self.change(&Roots::writes(to), guard, self.objects.put(to, content.into())).map(drop)
    }

    pub(crate) fn delete(&self, key: &Key, guard: &Guard) -> Result<(), Fault> {
        self.change(&Roots::writes(key), guard, self.objects.delete(key))
    }

    /// Has a change made that concerns these sub-trees, unless the lease is lost. The guard knows in time; but this
    /// process may be stopped just after it has looked, and then only the store can tell, by the fence.
    pub(crate) fn change<T>(
        &self,
        roots: &Roots,
        guard: &Guard,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Fault> {
        if !guard.is_valid() {
            return Err(Fault::Late(Late::Guard));
        }
        let (Some(fences), Some(fence)) = (&self.fences, guard.fence()) else { return self.ask(request) };
        match fences.unless_higher(roots, fence, || self.ask(request))? {
            Some(done) => done,
            None if guard.is_valid() => {
                Err(Fault::Torn(format!("{roots:?} had a later holder than one that was valid")))
            }
            None => Err(Fault::Late(Late::Store)),
        }
    }

    /// Has the store refuse, from now on, what an earlier holder of any of these sub-trees may still write.
    pub(crate) fn fence_off(&self, roots: &Roots, guard: &Guard) -> Result<(), Fault> {
        match (&self.fences, guard.fence()) {
            (Some(fences), Some(fence)) => fences.raise(roots, fence),
            _ => Ok(()),
        }
    }

    /// Reads all objects below `folder` and says what is torn.
    pub(crate) fn survey(&self, folder: &Key) -> Result<Survey, Fault> {
        let mut survey = Survey::default();
        let mut found = BTreeMap::<Key, usize>::new();
        for key in self.keys_below(folder)? {
            let content = self.read(&key)?;
            let file = below_shelf(&key);
            if self.originals.files.get(&file).is_none_or(|original| *original != content) {
                survey.torn.push(format!("{key} does not have its content"));
            }
            survey.files.insert(file);
            survey.objects += 1;
            *found.entry(key.parent().unwrap_or_default()).or_default() += 1;
        }
        for (place, found) in found {
            let all = self.originals.folders.get(&below_shelf(&place)).copied().unwrap_or_default();
            if found != all {
                survey.torn.push(format!("{place} had {found} of its {all} files"));
            }
        }
        let (found, all) = (survey.files.len(), self.originals.files.len());
        if folder.is_root() && found < all {
            survey.torn.push(format!("the whole store had {found} of the {all} files"));
        }
        Ok(survey)
    }
}

/// The place of a file or folder on a shelf.
pub(crate) fn place(shelf: &str, name: &Key) -> Key {
    Key::from(shelf).parts().chain(name.parts()).collect()
}

/// The rest of a key, without its shelf.
pub(crate) fn below_shelf(key: &Key) -> Key {
    key.parts().skip(1).collect()
}
