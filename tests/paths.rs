//! How paths are told apart, refused, and given to the lock.
//!
//! Two spellings of one node must always conflict, and two nodes should not: that is G1 and G4 for names.
#![cfg(not(feature = "model"))]

mod common;

use common::{admits, assert_free, panic_message};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use treelock::{Frame, LockError, PathError, Segments, TreeLock, TreePath};

/// The forms of a call that are promised to compile as they stand.
#[test]
fn paths_are_given_in_any_form_that_can_be_borrowed_as_one() {
    {
        let lock = TreeLock::new();
        let _g = lock.lock(&[], &["data/users"]);
    }
    {
        let lock = TreeLock::new();
        let reads: Vec<PathBuf> = vec!["a".into(), "b".into()];
        let writes: Vec<PathBuf> = vec!["c".into()];
        let _g = lock.lock(&reads, &writes);
    }
    {
        let lock = TreeLock::new();
        let _g = lock.lock(&[Path::new("a")], &[]);
    }
    {
        let lock = TreeLock::new();
        let string = String::from("a");
        let _g = lock.lock(&[string], &["literal"]);
    }
    {
        let s = TreeLock::<str>::default();
        let _g = s.lock(&[String::from("bucket/key")], &[]);
    }
    {
        let t = TreeLock::<[u32]>::default();
        let _g = t.lock(&[vec![1u32, 3, 6, 1]], &[]);
    }
    {
        let a = Arc::new(TreeLock::new());
        let g = a.lock_arc(&["src"], &["dst"]);
        fn send<T: Send + 'static>(_: T) {}
        send(g);
    }
}

/// The same for one path, and for what is borrowed in other ways.
#[test]
fn one_path_is_given_without_a_list() {
    let lock = Arc::new(TreeLock::new());
    let owned = PathBuf::from("a/b");
    drop((
        lock.read("a"),
        lock.read(&owned),
        lock.read(owned),
        lock.read(OsStr::new("a")),
        lock.read(String::from("a")),
    ));
    drop((lock.write(Path::new("a")), lock.write(std::path::Component::Normal("a".as_ref()))));
    drop(lock.read_arc("a"));
    drop(lock.write_arc(String::from("a")));
    let keys = TreeLock::<str>::default();
    drop((keys.read("a"), keys.write(String::from("a")), keys.write(Box::<str>::from("a"))));
    let numbers = TreeLock::<[u8]>::default();
    drop((numbers.read([1, 2]), numbers.write(vec![1]), numbers.write("bytes"), numbers.write([0; 0])));
    assert_free(&lock, "".as_ref());
}

/// The lists are of any kind that can be borrowed as a slice, each of a type of its own; an empty one needs no type.
#[test]
fn reads_and_writes_may_be_lists_of_different_types() {
    let lock = TreeLock::new();
    let (string, owned) = (String::from("s"), vec![PathBuf::from("a"), PathBuf::from("b")]);
    drop(lock.lock(&[&string], &[OsStr::new("o")]));
    drop(lock.lock(&owned, &["c"]));
    drop(lock.lock(&["c"; 32], &owned));
    drop((lock.lock(&owned, &[]), lock.lock(&[], &owned[..1]), lock.lock(&[], &[])));
    let any: Vec<&dyn AsRef<Path>> = vec![&string, &"literal", &owned[0]];
    drop(lock.lock(&any, &owned.iter().map(|path| path.join("x")).collect::<Vec<_>>()));
    let cases: [(common::Paths, common::Paths); 2] = [(&["a"], &[]), (&[], &["b"])];
    for (reads, writes) in &cases {
        drop(lock.lock(reads, writes));
    }
    let long = ["x"; 40];
    drop(lock.lock(&long[..], &[]));
    let numbers = TreeLock::<[u32]>::default();
    drop((numbers.lock(&[vec![1, 2]], &[[3, 4], [5, 6]]), numbers.lock(&[], &[[7]])));
    drop(numbers.try_lock(&[[1]], &[vec![2]]).unwrap());
}

/// G1: another spelling of a node is excluded all the same.
#[test]
fn every_spelling_of_a_path_is_the_same_node() {
    let spellings =
        ["a/b", "a//b", "a/b/", "./a/b", "a/./b/.", "a/x/../b", "a/b/c/..", "x/../a/y/z/../../b", "a///b//"];
    for held in spellings {
        let lock = common::new();
        let _held = lock.write(held);
        for other in spellings {
            assert!(!admits(&lock, &[other], &[]), "{other} passes {held}");
            assert!(!admits(&lock, &[], &[Path::new(other).join("below")]), "below {other} passes {held}");
        }
        assert!(admits(&lock, &[], &["a/bb", "a/c", "b", "ab", "x"]), "{held} holds up others");
    }
}

/// G1: also the root, which has several names.
#[test]
fn every_spelling_of_the_root_is_the_whole_tree() {
    for root in ["", ".", "./", "a/..", "a/../b/..", ".//."] {
        let lock = common::new();
        let held = lock.write(root);
        assert!(!admits(&lock, &["a"], &[]) && !admits(&lock, &["."], &[]), "{root:?}");
        drop(held);
        let _below = lock.write("a/b");
        assert!(!admits(&lock, &[root], &[]), "{root:?}");
    }
    for root in ["", "/", "//", "/.", "/..", "/a/..", "/../../"] {
        let lock = common::new();
        let _held = lock.write(root);
        assert!(!admits(&lock, &["/a"], &[]), "{root:?}");
    }
}

/// G1: the empty path is everything, whatever the other paths are relative to.
#[test]
fn the_empty_path_is_the_root_beside_relative_and_absolute_paths() {
    for kind in ["a/b", "/a/b"] {
        let lock = common::new();
        let held = lock.write(kind);
        assert!(!admits(&lock, &[""], &[]), "{kind}");
        assert!(lock.try_lock(&["", kind], &["", kind]).is_ok(), "{kind}");
        drop(held);
        let all = lock.read("");
        assert!(!admits(&lock, &[], &[kind]) && admits(&lock, &[kind], &[""; 0]), "{kind}");
        drop(all);
        assert_free(&lock, "".as_ref());
    }
}

/// G1: above the root there is nothing.
#[test]
fn absolute_paths_end_at_the_root() {
    let lock = common::new();
    let _held = lock.write("/a/b");
    for same in ["/../a/b", "/x/../../a/b", "//a//b/", "/./a/b"] {
        assert!(!admits(&lock, &[same], &[]), "{same}");
    }
    assert!(admits(&lock, &[], &["/a/c", "/b"]));
}

/// G4: names that resemble each other are other nodes.
#[test]
fn similar_names_do_not_hold_up_each_other() {
    let names =
        ["a", "A", "a ", " a", "aa", "a.", ".a", "...", "a\\b", "a\0b", "ä", "a\u{308}", "-", "~", "a:b", "*"];
    for held in names {
        let lock = common::new();
        let _held = lock.write(held);
        for other in names {
            assert_eq!(admits(&lock, &[], &[other]), held != other, "{other:?} beside {held:?}");
        }
    }
}

/// G4: names of all lengths that differ in one byte, at the ends or in the middle, or only in their length.
#[test]
fn names_that_differ_in_one_byte_are_other_nodes() {
    let mut names = HashSet::new();
    for length in (1..70).chain([127, 128, 129, 255, 256, 257, 1000]) {
        let name = "x".repeat(length);
        for at in [0, length / 3, length / 2, length - 1] {
            let mut other = name.clone().into_bytes();
            other[at] = b'y';
            names.insert(String::from_utf8(other).unwrap());
        }
        names.insert(name);
    }
    // Each is granted beside all others, though `Arc` guards exclude each other.
    let lock = Arc::new(TreeLock::<str>::default());
    let guards: Vec<_> = names.iter().map(|name| lock.try_lock_arc(&[], &[name]).expect(name)).collect();
    assert_eq!(lock.snapshot().holders.len(), guards.len());
}

/// For `str`, `/` separates, and no other character is special.
#[test]
fn text_knows_separators_and_no_dots() {
    let lock = common::watched(TreeLock::<str>::default());
    let _held = lock.write("bucket/a");
    for same in ["/bucket/a", "bucket//a/", "bucket/a/b", "bucket/a/..", "///bucket///a///x"] {
        assert!(!admits(&lock, &[same], &[]), "{same}");
    }
    for other in ["bucket/./a", "./bucket/a", "bucket/x/../a", "bucket\\a", "bucket/A", ".."] {
        assert!(admits(&lock, &[], &[other]), "{other}");
    }
    for root in ["", "/", "//"] {
        assert!(!admits(&lock, &[root], &[]), "{root:?}");
    }
}

/// Slices are identified by their elements, of whatever type.
#[test]
fn slices_are_told_by_their_elements() {
    let lock = common::watched(TreeLock::<[String]>::default());
    let path = |names: &[&str]| -> Vec<String> { names.iter().map(|name| name.to_string()).collect() };
    let _held = lock.write(path(&["a/b", ""]));
    assert!(!admits(&lock, &[path(&["a/b", "", "c"])], &[]) && !admits(&lock, &[path(&["a/b"])], &[]));
    assert!(admits(&lock, &[], &[path(&["a", "b"]), path(&["a/b", "x"]), path(&[""])]));
    let units = common::watched(TreeLock::<[()]>::default());
    let _held = units.write([(), ()]);
    assert!(!admits(&units, &[vec![()]], &[]) && !admits(&units, &[vec![(); 3]], &[]));
    assert!(!admits(&units, &[vec![]], &[]));
}

/// G4.
#[cfg(unix)]
#[test]
fn paths_need_not_be_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let path = |bytes: &'static [u8]| Path::new(OsStr::from_bytes(bytes));
    let lock = common::new();
    let _held = lock.write(path(b"a/\xff\xfe"));
    assert!(!admits(&lock, &[path(b"a/\xff\xfe")], &[]) && !admits(&lock, &[path(b"./a//\xff\xfe/x")], &[]));
    assert!(admits(&lock, &[], &[path(b"a/\xff"), path(b"a/\xfe\xff"), path("a/\u{fffd}\u{fffd}".as_bytes())]));
    assert!(lock.snapshot().to_string().contains(r"a/\xFF\xFE"));
    let error = lock.try_lock(&[path(b"../\xff")], &[]).unwrap_err().to_string();
    assert!(error.contains(r"\xFF"), "{error}");
}

/// The error that `try_lock` returns for these paths, and `lock` panics with.
fn refusal(lock: &Arc<TreeLock>, reads: &[&str], writes: &[&str]) -> PathError {
    let soon = Duration::from_millis(1);
    let refusals = [
        lock.try_lock(reads, writes).err(),
        lock.try_lock_for(reads, writes, soon).err(),
        lock.try_lock_until(reads, writes, std::time::Instant::now() + soon).err(),
        lock.try_lock_arc(reads, writes).err(),
        lock.try_lock_arc_for(reads, writes, soon).err(),
        lock.try_lock_arc_until(reads, writes, std::time::Instant::now() + soon).err(),
    ];
    let errors = refusals.map(|refused| match refused {
        Some(LockError::Path(error)) => error,
        other => panic!("{reads:?}, {writes:?}: {other:?}"),
    });
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
    let expected = format!("treelock: {}", errors[0]);
    assert_eq!(panic_message(|| drop(lock.lock(reads, writes))), expected);
    assert_eq!(panic_message(|| drop(lock.lock_arc(reads, writes))), expected);
    let [first, ..] = errors;
    first
}

/// A path that cannot be resolved is refused by name, and nothing of the request is taken.
#[test]
fn a_path_that_leads_out_of_its_tree_is_refused_by_name() {
    let lock = common::new();
    for path in ["..", "../a", "a/../../b", "./..", "a/b/../../..", "../../.."] {
        let error = refusal(&lock, &["x"], &["y", path, "z"]).to_string();
        assert!(error.starts_with(&format!("unusable path {path:?}: ")) && error.contains("\"..\""), "{error}");
        assert!(!error.ends_with('.') && !error.contains('\n'), "{error}");
        assert_free(&lock, "".as_ref());
    }
    assert_eq!(panic_message(|| drop(lock.read("../a"))), panic_message(|| drop(lock.write_arc("../a"))));
}

/// Two names of one place would silently not conflict, so the second kind is refused.
#[test]
fn relative_and_absolute_paths_do_not_mix() {
    for (first, then) in [("a", "/a"), ("/a", "a"), (".", "/"), ("/", ".")] {
        let lock = common::new();
        let _held = lock.read(first);
        let error = refusal(&lock, &[], &[then]).to_string();
        assert!(error.starts_with(&format!("unusable path {then:?}: ")), "{error}");
        assert!(error.contains("relative") && error.contains("absolute"), "{error}");
        assert!(lock.try_lock(&[], &[first]).is_ok());
    }
}

/// The same within one request: the error names the path that differs from the first.
#[test]
fn relative_and_absolute_paths_do_not_mix_in_one_request() {
    let lock = common::new();
    let error = refusal(&lock, &["a", "b"], &["c", "/d"]).to_string();
    assert!(error.starts_with("unusable path \"/d\": it is absolute"), "{error}");
    let error = refusal(&lock, &["/a"], &["/b", "c"]).to_string();
    assert!(error.starts_with("unusable path \"c\": it is relative"), "{error}");
}

/// A request that is refused for its paths does not set the kind, nor does one that has no path of either kind.
#[test]
fn a_refused_request_does_not_decide_the_kind_of_paths() {
    for (first, other) in [("a", "/a"), ("/a", "a")] {
        let lock = common::new();
        let _all = lock.read("");
        let _nothing = lock.lock(&[], &[]);
        refusal(&lock, &[first], &[other]);
        refusal(&lock, &[other, "../a"], &[]);
        let _held = lock.read(first);
        refusal(&lock, &[other], &[]);
        refusal(&lock, &["", other], &[]);
    }
}

/// Otherwise a client of a server could make it refuse all others from then on.
#[test]
fn a_stray_path_is_forgotten_when_nothing_is_held() {
    let lock = common::new();
    for (one, other) in [("a", "/a"), ("/a", "a"), ("a", "/b/c")] {
        let first = lock.read_arc(one);
        let second = lock.write_arc(Path::new(one).join("../z"));
        drop(first);
        refusal(&lock, &[other], &[]);
        drop(second);
        let held = lock.write(other);
        refusal(&lock, &[one], &[]);
        drop(held);
    }
    assert_free(&lock, "".as_ref());
}

/// The kind is not forgotten while a request waits that will be granted.
#[test]
fn a_kind_of_paths_that_is_awaited_is_not_forgotten() {
    let lock = common::new();
    let all = lock.write("");
    let waiting = common::Other::waits(&lock, &["/a"], &[]);
    refusal(&lock, &[], &["a"]);
    drop(all);
    waiting.wait_until_granted();
    refusal(&lock, &[], &["a"]);
    waiting.releases();
    assert!(lock.try_lock(&[], &["a"]).is_ok());
}

/// Also when the first requests come at the same time.
#[test]
fn of_two_kinds_that_come_together_one_is_refused() {
    for _ in 0..50 {
        let lock = common::new();
        let together = Arc::new(std::sync::Barrier::new(2));
        let threads = ["a", "/a"].map(|path| {
            let (lock, together) = (Arc::clone(&lock), Arc::clone(&together));
            common::spawn(path, move || {
                together.wait();
                let granted = lock.try_lock(&[path], &[]);
                together.wait();
                granted.is_ok()
            })
        });
        assert_eq!(common::join_all(threads).into_iter().filter(|granted| *granted).count(), 1);
    }
}

/// G1: otherwise two names of one place would not conflict, and nobody would notice.
#[test]
fn two_kinds_that_come_and_go_are_never_held_together() {
    let lock = common::new();
    let held = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let threads = (0..4usize).map(|number| {
        let (lock, held) = (Arc::clone(&lock), Arc::clone(&held));
        let (kind, paths) = (number % 2, [["a", "b/c"], ["/a", "/b/c"]][number % 2]);
        common::spawn(paths[0], move || {
            let mut granted = 0;
            while granted < 500 {
                let Ok(_guard) = lock.try_lock(&[paths[granted % 2]], &[]) else {
                    std::thread::yield_now();
                    continue;
                };
                granted += 1;
                held[kind].fetch_add(1, Ordering::SeqCst);
                assert_eq!(held[1 - kind].load(Ordering::SeqCst), 0, "both kinds are held");
                held[kind].fetch_sub(1, Ordering::SeqCst);
            }
        })
    });
    common::join_all(threads);
    assert_free(&lock, "".as_ref());
}

/// G5: a deep path exceeds neither the stack nor the time, in the lock or in its reports.
#[test]
fn a_path_of_ten_thousand_segments_is_a_path() {
    let lock = common::new();
    let deep: PathBuf = (0..10_000).map(|number| format!("s{}", number % 10)).collect();
    let held = lock.write(&deep);
    assert!(!admits(&lock, &["s0/s1/s2"], &[]) && !admits(&lock, &[deep.join("below")], &[]));
    assert!(admits(&lock, &["s0/s1/s3"], &[]) && admits(&lock, &[], &[deep.parent().unwrap().join("brother")]));
    let snapshot = lock.snapshot();
    assert_eq!(snapshot.holders[0].roots[0].segments.len(), 10_000);
    assert!(snapshot.to_string().contains("s0/s1/s2/s3"));
    drop(held);
    let up_and_down = "a/../".repeat(10_000) + "b";
    let held = lock.write(&up_and_down);
    assert!(!admits(&lock, &["b"], &[]) && admits(&lock, &[], &["a"]));
    drop(held);
    assert_free(&lock, "".as_ref());
}

/// G5.
#[test]
fn a_request_of_ten_thousand_roots_is_a_request() {
    let lock = common::new();
    let roots: Vec<String> = (0..10_000).map(|number| format!("d{}/f{number}", number % 7)).collect();
    let held = lock.lock(&roots[..5000], &roots[5000..]);
    assert!(admits(&lock, &roots[..5000], &[]) && !admits(&lock, &[], &roots[4999..5000]));
    assert!(!admits(&lock, &roots[5000..5001], &[]) && !admits(&lock, &roots[9999..], &[]));
    assert!(admits(&lock, &[], &["d0/g", "d7"]));
    assert_eq!(lock.snapshot().holders[0].roots.len(), 10_000);
    drop(held);
    assert_free(&lock, "".as_ref());
}

/// Nothing is asked for, and nothing is held.
#[test]
fn an_empty_request_is_granted_and_excludes_nobody() {
    let lock = common::new();
    let all = lock.write_arc("");
    let nothing = lock.lock(&[], &[]);
    let nothing_more = lock.try_lock_for(&[], &[], Duration::ZERO).unwrap();
    let arc = lock.try_lock_arc(&[], &[]).unwrap();
    drop(all);
    assert!(admits(&lock, &[], &[""]));
    drop((nothing.downgrade(), nothing_more, arc.downgrade()));
    assert_free(&lock, "".as_ref());
}

/// G1: the strongest mode counts, and each root is granted once.
#[test]
fn repeated_and_nested_roots_are_one_request() {
    let lock = common::new();
    let held = lock.lock(&["a", "a", "a/b", "./a/", "w/r"], &["w", "w/x", "w", "v/u", "v//u/"]);
    assert!(admits(&lock, &["a", "a/b"], &["x"]) && !admits(&lock, &[], &["a/b/c"]));
    assert!(!admits(&lock, &["w/r"], &[]) && !admits(&lock, &["w/y"], &[]) && !admits(&lock, &["v/u"], &[]));
    assert!(admits(&lock, &["v/t"], &["v/s"]));
    drop(held);
    let both = lock.lock(&["a"], &["a"]);
    assert!(!admits(&lock, &["a"], &[]), "who reads and writes a node writes it");
    drop(both);
    assert_free(&lock, "".as_ref());
}

/// A user's own type of path can do all that the others can: segments of two kinds, a way back, and errors.
#[test]
fn a_path_type_of_ones_own_is_locked_like_any_other() {
    /// Words between dots, pushed from the last to the first as in host names; `^` removes one.
    #[derive(Clone, Debug)]
    struct Host(&'static str);

    impl TreePath for Host {
        fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError> {
            for word in self.0.rsplit('.') {
                match word.strip_prefix('#') {
                    _ if word == "^" => {
                        if !segments.pop() {
                            return Err(PathError::new("there is nothing above"));
                        }
                    }
                    Some(number) => {
                        let number: u32 = number.parse().map_err(|error| PathError::new(format!("{error}")))?;
                        segments.push(&number);
                    }
                    None => segments.push_bytes(word.as_bytes()),
                }
            }
            Ok(())
        }

        fn frame(&self) -> Option<Frame> {
            Some(if self.0.ends_with('.') { Frame::Absolute } else { Frame::Relative })
        }
    }

    impl AsRef<Host> for Host {
        fn as_ref(&self) -> &Host {
            self
        }
    }

    let lock = common::watched(TreeLock::<Host>::default());
    let held = lock.write(Host("www.example.org"));
    for excluded in
        ["org", "example.org", "www.example.org", "a.www.example.org", "www.^.ftp.example.org", "#7.www.example.org"]
    {
        assert!(!admits(&lock, &[Host(excluded)], &[]), "{excluded}");
    }
    for free in ["ftp.example.org", "www.example.com", "#7.example.org", "7.example.org", "^.www.example.net"] {
        assert!(admits(&lock, &[], &[Host(free)]), "{free}");
    }
    drop(held);
    let number = lock.write(Host("#7.org"));
    assert!(!admits(&lock, &[Host("#07.org")], &[]) && admits(&lock, &[], &[Host("7.org")]));
    let error = |path| lock.try_lock(&[Host(path)], &[]).unwrap_err().to_string();
    assert_eq!(error("^.^.org"), "unusable path Host(\"^.^.org\"): there is nothing above");
    assert_eq!(error("#x.org"), "unusable path Host(\"#x.org\"): invalid digit found in string");
    assert!(error("www.example.org.").starts_with("unusable path Host(\"www.example.org.\"): it is absolute"));
    drop(number);
    assert!(lock.snapshot().holders.is_empty());
}

/// `..` removes only segments of its own path, however that path is used.
#[test]
fn a_path_inside_of_another_does_not_lead_out_of_it() {
    #[derive(Clone, Debug)]
    struct Tenant(u32, &'static str);

    impl TreePath for Tenant {
        fn segments(&self, segments: &mut Segments<'_>) -> Result<(), PathError> {
            segments.push(&self.0);
            Path::new(self.1).segments(segments)?;
            segments.push_bytes(b"end");
            segments.pop();
            Ok(())
        }
    }

    impl AsRef<Tenant> for Tenant {
        fn as_ref(&self) -> &Tenant {
            self
        }
    }

    let lock = common::watched(TreeLock::<Tenant>::default());
    for path in ["../8/a", "x/../../8"] {
        assert!(lock.try_lock(&[Tenant(7, path)], &[]).unwrap_err().to_string().contains("leads out"), "{path}");
    }
    let _held = lock.write(Tenant(7, "/../a"));
    assert!(!admits(&lock, &[Tenant(7, "a/b")], &[]) && admits(&lock, &[], &[Tenant(7, "b"), Tenant(8, "a")]));
}

/// The documentation of `TreeLock`: a node alone is a child that no real node has. What one request locks of
/// `folder`, and whether another one is granted the same, or something else, beside it.
#[test]
fn a_node_alone_conflicts_with_the_whole_and_with_itself_and_with_nothing_below() {
    const CASES: [(char, &str, char, &str, bool); 16] = [
        ('r', "ALONE", 'r', "folder", true),
        ('r', "ALONE", 'w', "folder", false),
        ('w', "ALONE", 'r', "folder", false),
        ('w', "ALONE", 'w', "folder", false),
        ('r', "ALONE", 'r', "ALONE", true),
        ('r', "ALONE", 'w', "ALONE", false),
        ('w', "ALONE", 'w', "ALONE", false),
        ('r', "ALONE", 'w', "folder/file", true),
        ('w', "ALONE", 'r', "folder/file", true),
        ('w', "ALONE", 'w', "folder/file/deep", true),
        ('r', "ALONE", 'w', "", false),
        ('w', "ALONE", 'r', "", false),
        ('r', "ALONE", 'r', "", true),
        ('w', "ALONE", 'w', "fold", true),
        ('w', "ALONE", 'w', "folder.", true),
        ('w', "ALONE", 'r', "other/ALONE", true),
    ];
    fn check<P: TreePath + ?Sized, Q: AsRef<P> + From<String> + Debug + Sync>(alone: &str) {
        for (held, holds, asked, asks, granted) in CASES {
            for ((held, holds), (asked, asks)) in [((held, holds), (asked, asks)), ((asked, asks), (held, holds))] {
                let lock = common::watched(TreeLock::<P>::default());
                let named = |name: &str| match name {
                    "ALONE" => Q::from(format!("folder/{alone}")),
                    name => Q::from(name.replace("ALONE", alone)),
                };
                let (holds, asks) = ([named(holds)], [named(asks)]);
                let _guard = if held == 'r' { lock.lock(&holds, &[]) } else { lock.lock(&[], &holds) };
                let admitted = if asked == 'r' { admits(&lock, &asks, &[]) } else { admits(&lock, &[], &asks) };
                assert_eq!(admitted, granted, "{asked} {asks:?} beside {held} {holds:?}");
            }
        }
    }
    check::<str, String>(".");
    check::<Path, PathBuf>("\0self");
}
