//! The lists of paths that the methods of a lock take as `reads` and `writes`.
//!
//! Why a trait, and not two slices: in `lock(&[], &["a"])` nothing tells the compiler the type of the first list. If
//! both lists had to be of *the same* type, `lock(&[string], &["a"])` would not compile. With the trait, only one
//! implementation fits `[_; 0]`, so the compiler infers [`NoPath`]. That is why the implementations for arrays are
//! written out, length by length, and there is none for `[Q; N]`.
//!
//! Invariant: exactly one implementation fits `[_; 0]`. The trait is sealed, so that no other crate can add one.

/// A list of paths to lock: an array, a slice or a [`Vec`] of anything that is `AsRef<P>`, or a reference to one.
///
/// [`lock`](crate::TreeLock::lock) and its like take such lists as `reads` and as `writes`. The two may be of
/// different types, and an empty one is `&[]`:
///
/// ```
/// use std::path::PathBuf;
///
/// let lock = treelock::TreeLock::new();
/// let user = String::from("ada");
/// let inbox: Vec<PathBuf> = vec!["mail/ada".into(), "mail/all".into()];
/// drop(lock.lock(&[], &["a"]));
/// drop(lock.lock(&[format!("users/{user}")], &["log", "index"]));
/// drop(lock.lock(&inbox, &[&user]));
/// drop(lock.lock(&inbox[..1], &inbox[1..]));
/// ```
///
/// An empty list is `[]`; the compiler would have to be told the type of `vec![]`. Arrays may have up to 32 paths. Give a longer array, one whose length is generic, and an empty one of a known type
/// as a slice: `&paths[..]`. The paths of one list are of one type; borrow them, as in `[&*string, "literal"]`.
///
/// Sealed: other crates cannot implement it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a list of paths that can be locked",
    label = "an array, a slice or a `Vec` of paths is expected here",
    note = "one path is given as `&[path]`, or to `read` and `write`",
    note = "whatever can be borrowed as a slice, and an array that is not of 1 to 32 paths, is given as `&paths[..]`"
)]
pub trait Roots<P: ?Sized>: Sealed {
    #[doc(hidden)]
    type Path: AsRef<P>;

    #[doc(hidden)]
    fn as_slice(&self) -> &[Self::Path];
}

/// No other crate can name it, so none can implement [`Roots`].
pub trait Sealed {}

/// The type of the paths of an empty list, `[]`: there are none. It is to be named only in the type of a future that is stored.
#[derive(Debug)]
pub enum NoPath {}

impl<P: ?Sized> AsRef<P> for NoPath {
    fn as_ref(&self) -> &P {
        match *self {}
    }
}

impl Sealed for [NoPath; 0] {}

impl<P: ?Sized> Roots<P> for [NoPath; 0] {
    type Path = NoPath;

    fn as_slice(&self) -> &[NoPath] {
        self
    }
}

impl<Q> Sealed for [Q] {}

impl<P: ?Sized, Q: AsRef<P>> Roots<P> for [Q] {
    type Path = Q;

    fn as_slice(&self) -> &[Q] {
        self
    }
}

impl<Q> Sealed for Vec<Q> {}

impl<P: ?Sized, Q: AsRef<P>> Roots<P> for Vec<Q> {
    type Path = Q;

    fn as_slice(&self) -> &[Q] {
        self
    }
}

impl<R: Sealed + ?Sized> Sealed for &R {}

impl<P: ?Sized, R: Roots<P> + ?Sized> Roots<P> for &R {
    type Path = R::Path;

    fn as_slice(&self) -> &[R::Path] {
        R::as_slice(self)
    }
}

macro_rules! arrays {
    ($($length:literal)*) => { $(
        impl<Q> Sealed for [Q; $length] {}

        impl<P: ?Sized, Q: AsRef<P>> Roots<P> for [Q; $length] {
            type Path = Q;

            fn as_slice(&self) -> &[Q] {
                self
            }
        }
    )* };
}

arrays!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32);
