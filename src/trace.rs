//! The events of the feature `tracing`: long waits, and deadlocks. Without the feature this module does nothing and
//! costs nothing.
//!
//! Each scope calls it where it makes a guard ([`Wait::begin`] before the request, [`Wait::end`] when its outcome is
//! known). A subscriber is user code and may panic. So the caller holds no internal lock, and a granted request is in
//! its guard already (G8).

#[cfg(feature = "tracing")]
pub(crate) use imp::Refusal;
pub(crate) use imp::Wait;

#[cfg(feature = "tracing")]
mod imp {
    use crate::core::roots::Roots;
    use crate::inspect::Deadlock;
    use crate::sync::Moment;
    use std::fmt::{self, Debug, Display};
    use std::panic::Location;
    use std::time::Duration;

    /// A wait that lasts this long is reported.
    const LONG: Duration = Duration::from_secs(1);

    /// A request that may have to wait.
    #[derive(Debug)]
    pub(crate) struct Wait(Moment);

    impl Wait {
        #[inline]
        pub(crate) fn begin() -> Self {
            Wait(Moment::now())
        }

        /// For a request that was made at that place.
        #[inline]
        pub(crate) fn end<P, G, E>(
            self,
            location: &'static Location<'static>,
            outcome: &Result<G, E>,
            reads: &(impl Roots<P> + ?Sized),
            writes: &(impl Roots<P> + ?Sized),
        ) where
            P: Debug + ?Sized,
            E: Refusal,
        {
            let waited = self.0.elapsed();
            let deadlock = outcome.as_ref().err().and_then(Refusal::deadlock);
            if let Some(deadlock) = deadlock {
                tracing::warn!(target: "treelock", %deadlock, "a deadlock is reported");
            } else if waited >= LONG {
                let outcome = outcome.as_ref().map_or_else(ToString::to_string, |_| "granted".into());
                tracing::info!(
                    target: "treelock",
                    reads = ?Paths::<P, _>::of(reads.as_slice()),
                    writes = ?Paths::<P, _>::of(writes.as_slice()),
                    %location,
                    seconds = waited.as_secs_f64(),
                    outcome,
                    "a request waited long"
                );
            }
        }
    }

    /// Why a request was refused, in any scope; the errors implement it in `error.rs`.
    pub(crate) trait Refusal: Display {
        fn deadlock(&self) -> Option<&Deadlock>;
    }

    /// Paths as they were given: the first ones, and the number of the others.
    struct Paths<'a, P: ?Sized, Q>(&'a [Q], std::marker::PhantomData<fn(&P)>);

    impl<'a, P: ?Sized, Q> Paths<'a, P, Q> {
        fn of(paths: &'a [Q]) -> Self {
            Paths(paths, std::marker::PhantomData)
        }
    }

    impl<P: Debug + ?Sized, Q: AsRef<P>> Debug for Paths<'_, P, Q> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let mut list = f.debug_list();
            list.entries(self.0.iter().take(3).map(AsRef::as_ref));
            match self.0.len() {
                more @ 4.. => list.entry(&format_args!("and {} more", more - 3)).finish(),
                _ => list.finish(),
            }
        }
    }
}

#[cfg(not(feature = "tracing"))]
mod imp {
    use std::panic::Location;

    /// A request that may have to wait.
    #[derive(Debug)]
    pub(crate) struct Wait;

    impl Wait {
        #[inline]
        pub(crate) fn begin() -> Self {
            Wait
        }

        #[inline]
        pub(crate) fn end<G, E, R: ?Sized, W: ?Sized>(
            self,
            _location: &Location<'_>,
            _outcome: &Result<G, E>,
            _reads: &R,
            _writes: &W,
        ) {
        }
    }
}
