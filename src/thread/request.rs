//! One request: who asked for what, and where in the source.
//!
//! A request is built completely, with all user code, before anything is locked. It does not change afterwards, so
//! reports can share it and spell it out when every internal lock is released. A guard that is weakened gets another
//! request. A register of the ledger keeps a few spent requests, for their buffers. Roots that are text stay in them:
//! if a thread asks for the same roots again, their plan is there; if it asks for others, only the parts that differ
//! are planned anew. Other paths may own something, and are dropped or emptied with the guard.

use crate::core::mode::Mode;
use crate::core::node_id::Seeds;
use crate::core::owner::{Owner, OwnerId};
use crate::core::path::{Frame, MOST_BYTES, OursAlone, PathError, TreePath, join_frame};
use crate::core::plan::Plan;
use crate::sync::{self, ThreadInfo};
use std::borrow::Borrow;
use std::panic::Location;
use std::sync::Arc;

/// A request with room for more roots is not kept for the next one.
const MOST_ROOTS: usize = 16;

/// A request as its entry, reports and snapshots share it.
pub(crate) type SharedRequest<P> = triomphe::Arc<Request<P>>;

pub(crate) struct Request<P: TreePath + ?Sized> {
    pub(crate) plan: Plan,
    pub(crate) owner: Owner,
    /// The frame of its paths, if one of them has one.
    pub(crate) frame: Option<Frame>,
    /// The thread that asked. A plain guard stays in it, and so does every request while it is blocked.
    pub(crate) thread: Arc<ThreadInfo>,
    pub(crate) location: &'static Location<'static>,
    /// The roots as they were given, reads first.
    pub(crate) roots: Vec<P::Owned>,
    /// How many of them are reads.
    reads: usize,
    /// Whether it may be kept as it is: all roots are text, and small.
    pub(crate) may_stay: bool,
    /// Emptied roots of earlier requests.
    emptied: Vec<P::Owned>,
}

/// Who asks, and where in the source.
#[derive(Clone, Copy)]
pub(crate) struct Asker {
    /// The calling thread.
    pub(crate) thread: u64,
    pub(crate) owner: Owner,
    pub(crate) location: &'static Location<'static>,
}

impl<P: TreePath + ?Sized> Request<P> {
    /// Builds a request, in the buffers of a spent one.
    #[inline]
    pub(crate) fn new<R: AsRef<P>, W: AsRef<P>>(
        spent: Option<SharedRequest<P>>,
        seeds: &Seeds,
        reads: &[R],
        writes: &[W],
        asker: Asker,
    ) -> Result<SharedRequest<P>, PathError> {
        let mut request = spent.unwrap_or_else(|| Self::empty(asker));
        let this = SharedRequest::get_mut(&mut request).expect("a spent request is nobody else's");
        if !this.asks_for(reads, writes) {
            this.tell(seeds, reads, writes)?;
        }
        this.ask(asker);
        Ok(request)
    }

    #[cold]
    fn empty(Asker { owner, location, .. }: Asker) -> SharedRequest<P> {
        let (plan, thread) = (Plan::default(), sync::thread_info());
        let (roots, emptied) = (Vec::new(), Vec::new());
        SharedRequest::new(Request {
            plan,
            owner,
            frame: None,
            thread,
            location,
            roots,
            reads: 0,
            may_stay: false,
            emptied,
        })
    }

    /// Lets this asker ask for the roots that the request has.
    #[inline]
    pub(crate) fn ask(&mut self, asker: Asker) {
        if self.thread.id != asker.thread {
            self.thread = sync::thread_info();
        }
        self.owner = asker.owner;
        self.location = asker.location;
    }

    /// Whether it asks for these roots.
    #[inline]
    fn asks_for<R: AsRef<P>, W: AsRef<P>>(&self, reads: &[R], writes: &[W]) -> bool {
        let paths = reads.iter().map(AsRef::as_ref).chain(writes.iter().map(AsRef::as_ref));
        self.may_stay
            && (self.reads, self.roots.len()) == (reads.len(), reads.len() + writes.len())
            && self.roots.iter().zip(paths).all(|(root, path)| is_same::<P>(root, path.text(OursAlone)))
    }

    /// Whether it asks for that root alone.
    #[inline]
    pub(crate) fn asks_for_one(&self, text: &[u8], mode: Mode) -> bool {
        self.may_stay
            && self.roots.len() == 1
            && (self.reads == 1) == (mode == Mode::Shared)
            && is_same::<P>(&self.roots[0], Some(text))
    }

    fn tell<R: AsRef<P>, W: AsRef<P>>(&mut self, seeds: &Seeds, reads: &[R], writes: &[W]) -> Result<(), PathError> {
        self.frame = None;
        let mut roots = self.plan.begin();
        let mut known: Option<&[u8]> = None;
        let mut bytes = 0;
        // `as_ref` is called once for each: the path that is planned and the one that is kept must be the same.
        let paths = reads.iter().map(|path| (path.as_ref(), Mode::Shared));
        let paths = paths.chain(writes.iter().map(|path| (path.as_ref(), Mode::Exclusive)));
        for (index, (path, mode)) in paths.enumerate() {
            self.frame = join_frame(self.frame, path)?;
            let text = path.text(OursAlone);
            if index == 0 && text.is_some() {
                known = self.roots.last().and_then(|root| root.borrow().text(OursAlone));
            }
            roots.add(path, mode, seeds, known, None)?;
            match self.roots.get_mut(index) {
                Some(root) => path.clone_into(root),
                None => match self.emptied.pop() {
                    Some(mut root) => {
                        path.clone_into(&mut root);
                        self.roots.push(root);
                    }
                    None => self.roots.push(path.to_owned()),
                },
            }
            bytes = text.map_or(usize::MAX, |text| text.len().saturating_add(bytes));
            known = text;
        }
        roots.end();
        self.roots.truncate(reads.len() + writes.len());
        self.reads = reads.len();
        self.may_stay = !self.roots.is_empty()
            && bytes <= MOST_BYTES
            && self.plan.is_small()
            && self.roots.capacity() <= MOST_ROOTS;
        Ok(())
    }

    /// The owner of the guard that it has, or will have.
    #[inline]
    pub(crate) fn owner_id(&self) -> Option<OwnerId> {
        self.owner.id(self.thread.id)
    }

    /// The same request for some of its roots: `keep` gets the index and the mode of each root, and returns the mode
    /// to keep it in, if any.
    pub(crate) fn of_some(&self, mut keep: impl FnMut(usize, Mode) -> Option<Mode>) -> SharedRequest<P> {
        let mut roots = Vec::new();
        let plan = self.plan.of_some(|index, mode| {
            let kept = keep(index, mode)?;
            roots.push(self.roots[index].borrow().to_owned());
            Some(kept)
        });
        let thread = Arc::clone(&self.thread);
        let Request { owner, frame, location, .. } = *self;
        let (reads, may_stay, emptied) = (0, false, Vec::new());
        SharedRequest::new(Request { plan, owner, frame, thread, location, roots, reads, may_stay, emptied })
    }

    /// Empties a spent request that nothing else refers to, to be kept for its buffers; `None` if it is not to be
    /// kept.
    pub(crate) fn recycle(mut this: SharedRequest<P>) -> Option<SharedRequest<P>> {
        let request = SharedRequest::get_mut(&mut this)?;
        if !request.may_stay {
            request.plan.clear();
            while let Some(mut root) = request.roots.pop() {
                if P::clear(&mut root) {
                    request.emptied.push(root);
                }
            }
        }
        let rooms = request.roots.capacity().max(request.emptied.capacity());
        (request.plan.is_small() && rooms <= MOST_ROOTS).then_some(this)
    }
}

#[inline]
fn is_same<P: TreePath + ?Sized>(root: &P::Owned, text: Option<&[u8]>) -> bool {
    text.is_some() && root.borrow().text(OursAlone) == text
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;
    use crate::core::mode::Mode;
    use proptest::prelude::*;
    use std::path::Path;

    const ASKER: Asker = Asker { thread: 0, owner: Owner::Thread, location: Location::caller() };

    /// Texts that have much in common, in many spellings.
    fn texts() -> impl Strategy<Value = Vec<String>> {
        let name = prop::sample::select(vec!["a", "b", "ab", "abcdefgh", "abcdefghi", "", ".", "..", "a\u{fc}"]);
        let text = prop::collection::vec(name, 0..6).prop_map(|names| format!("/{}", names.join("/")));
        prop::collection::vec(text, 0..4)
    }

    /// Checks that requests that are built in each other's buffers have the plans of new ones.
    fn check<P: TreePath + ?Sized + AsRef<P>>(requests: &[(Vec<&P>, Vec<&P>)]) {
        let seeds = Seeds::new(|| 7);
        let mut spent = None;
        for (reads, writes) in requests {
            let request = Request::<P>::new(spent, &seeds, reads, writes, ASKER).unwrap();
            let mut plan = Plan::default();
            plan.build::<P, _, _>(&seeds, reads, writes).unwrap();
            let steps = |plan: &Plan| plan.steps().iter().map(|step| (step.node, step.mode)).collect::<Vec<_>>();
            assert_eq!(steps(&request.plan), steps(&plan), "{reads:?} {writes:?}");
            assert_eq!(request.roots.len(), reads.len() + writes.len());
            for (root, path) in request.roots.iter().zip(reads.iter().chain(writes)) {
                assert_eq!(root.borrow().text(OursAlone), path.text(OursAlone));
            }
            if let [one] = &reads.iter().chain(writes).collect::<Vec<_>>()[..] {
                let (asked, other) =
                    if reads.is_empty() { (Mode::Exclusive, Mode::Shared) } else { (Mode::Shared, Mode::Exclusive) };
                let text = one.text(OursAlone).unwrap();
                assert!(request.asks_for_one(text, asked) && !request.asks_for_one(text, other));
            }
            spent = Request::recycle(request);
        }
    }

    proptest! {
        #[test]
        fn spent_request_gives_the_next_one_the_plan_of_a_new_one(
            requests in prop::collection::vec((texts(), texts()), 1..8)
        ) {
            fn asked<'a, P: ?Sized>(
                requests: &'a [(Vec<String>, Vec<String>)],
                path: impl Fn(&'a String) -> &'a P,
            ) -> Vec<(Vec<&'a P>, Vec<&'a P>)> {
                let paths = |texts: &'a [String]| texts.iter().map(&path).collect();
                requests.iter().map(|(reads, writes)| (paths(reads), paths(writes))).collect()
            }
            check::<str>(&asked(&requests, String::as_str));
            check::<Path>(&asked(&requests, |text| Path::new(text)));
        }
    }

    /// G6: a path that is large, or owns something, goes with its guard.
    #[test]
    fn spent_request_keeps_small_texts_alone() {
        fn kept<P: TreePath + ?Sized + AsRef<P>>(path: &P) -> usize {
            let request = Request::<P>::new(None, &Seeds::new(|| 7), &[path; 0], &[path], ASKER).unwrap();
            Request::recycle(request).unwrap().roots.len()
        }
        assert_eq!(kept("a/b"), 1);
        assert_eq!(kept(&*"x".repeat(MOST_BYTES + 1)), 0);
        assert_eq!(kept([7, 8].as_slice()), 0);
        let many = vec!["a"; MOST_ROOTS + 1];
        let request = Request::<str>::new(None, &Seeds::new(|| 7), &many[..0], &many, ASKER).unwrap();
        assert!(Request::recycle(request).is_none());
    }
}
