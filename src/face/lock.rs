//! The methods that lock.

/// Writes the methods that lock, in an `impl<P>` of the lock. Each text is added to the documentation of that method. A
/// scope that gives none for `lock` has its own `lock`, `read` and `write`.
///
/// The module that calls it imports the types of the arguments. (Spelled with `$crate::` in the signatures, they would
/// be spelled so in messages of the compiler.)
macro_rules! lock_methods {
    (
        guard: $guard:ty;
        arc guard: $arc_guard:ty, from $arc_self:ty;
        error: $error:ty;
        $(lock { $(#[$lock:meta])+ })?
        try_lock { $(#[$try_lock:meta])+ }
        try_lock_for { $(#[$try_lock_for:meta])+ }
    ) => {
        $(
            /// Locks the sub-trees below `reads` shared and those below `writes` exclusively; waits until it has them
            /// all.
            ///
            /// See [`TreeLock::lock`](crate::TreeLock::lock).
            ///
            $(#[$lock])+
            #[track_caller]
            pub fn lock(
                &self,
                reads: &(impl Roots<P> + ?Sized),
                writes: &(impl Roots<P> + ?Sized),
            ) -> Result<$guard, $error> {
                self.guard(reads, writes, Patience::Endless)
            }

            /// Locks the sub-tree below `path` shared: `lock(&[path], &[])`.
            ///
            /// # Errors
            ///
            /// As [`lock`](Self::lock).
            #[track_caller]
            pub fn read(&self, path: impl AsRef<P>) -> Result<$guard, $error> {
                let outcome = self.lock(&[&path], &[]);
                // Dropped here, not at the end: if this panics, unwinding releases the guard.
                drop(path);
                outcome
            }

            /// Locks the sub-tree below `path` exclusively: `lock(&[], &[path])`.
            ///
            /// # Errors
            ///
            /// As [`lock`](Self::lock).
            #[track_caller]
            pub fn write(&self, path: impl AsRef<P>) -> Result<$guard, $error> {
                let outcome = self.lock(&[], &[&path]);
                drop(path);
                outcome
            }

            /// As [`lock`](Self::lock), but the guard may go to other threads and is an owner of its own.
            ///
            /// # Errors
            ///
            /// As [`lock`](Self::lock).
            #[track_caller]
            pub fn lock_arc(
                self: $arc_self,
                reads: &(impl Roots<P> + ?Sized),
                writes: &(impl Roots<P> + ?Sized),
            ) -> Result<$arc_guard, $error> {
                self.guard_arc(reads, writes, Patience::Endless)
            }

            /// As [`read`](Self::read), but with a guard as of [`lock_arc`](Self::lock_arc).
            ///
            /// # Errors
            ///
            /// As [`lock`](Self::lock).
            #[track_caller]
            pub fn read_arc(self: $arc_self, path: impl AsRef<P>) -> Result<$arc_guard, $error> {
                let outcome = self.lock_arc(&[&path], &[]);
                drop(path);
                outcome
            }

            /// As [`write`](Self::write), but with a guard as of [`lock_arc`](Self::lock_arc).
            ///
            /// # Errors
            ///
            /// As [`lock`](Self::lock).
            #[track_caller]
            pub fn write_arc(self: $arc_self, path: impl AsRef<P>) -> Result<$arc_guard, $error> {
                let outcome = self.lock_arc(&[], &[&path]);
                drop(path);
                outcome
            }
        )?

        /// Locks as [`lock`](Self::lock) does if that needs no waiting.
        ///
        $(#[$try_lock])+
        #[track_caller]
        pub fn try_lock(
            &self,
            reads: &(impl Roots<P> + ?Sized),
            writes: &(impl Roots<P> + ?Sized),
        ) -> Result<$guard, $error> {
            self.guard(reads, writes, Patience::None)
        }

        /// Locks as [`lock`](Self::lock) does, waiting no longer than `timeout`.
        ///
        $(#[$try_lock_for])+
        #[track_caller]
        pub fn try_lock_for(
            &self,
            reads: &(impl Roots<P> + ?Sized),
            writes: &(impl Roots<P> + ?Sized),
            timeout: Duration,
        ) -> Result<$guard, $error> {
            self.guard(reads, writes, Patience::within(timeout))
        }

        /// Locks as [`lock`](Self::lock) does, waiting no longer than until `deadline`.
        ///
        /// # Errors
        ///
        /// As [`try_lock_for`](Self::try_lock_for).
        #[track_caller]
        pub fn try_lock_until(
            &self,
            reads: &(impl Roots<P> + ?Sized),
            writes: &(impl Roots<P> + ?Sized),
            deadline: Instant,
        ) -> Result<$guard, $error> {
            self.guard(reads, writes, Patience::Until(Some(deadline)))
        }

        /// Locks the sub-tree below `path` shared if that needs no waiting: `try_lock(&[path], &[])`.
        ///
        /// # Errors
        ///
        /// As [`try_lock`](Self::try_lock).
        #[track_caller]
        pub fn try_read(&self, path: impl AsRef<P>) -> Result<$guard, $error> {
            let outcome = self.try_lock(&[&path], &[]);
            drop(path);
            outcome
        }

        /// Locks the sub-tree below `path` exclusively if that needs no waiting: `try_lock(&[], &[path])`.
        ///
        /// # Errors
        ///
        /// As [`try_lock`](Self::try_lock).
        #[track_caller]
        pub fn try_write(&self, path: impl AsRef<P>) -> Result<$guard, $error> {
            let outcome = self.try_lock(&[], &[&path]);
            drop(path);
            outcome
        }

        /// Locks the sub-tree below `path` shared, waiting no longer than `timeout`:
        /// `try_lock_for(&[path], &[], timeout)`.
        ///
        /// # Errors
        ///
        /// As [`try_lock_for`](Self::try_lock_for).
        #[track_caller]
        pub fn try_read_for(&self, path: impl AsRef<P>, timeout: Duration) -> Result<$guard, $error> {
            let outcome = self.try_lock_for(&[&path], &[], timeout);
            drop(path);
            outcome
        }

        /// Locks the sub-tree below `path` exclusively, waiting no longer than `timeout`:
        /// `try_lock_for(&[], &[path], timeout)`.
        ///
        /// # Errors
        ///
        /// As [`try_lock_for`](Self::try_lock_for).
        #[track_caller]
        pub fn try_write_for(&self, path: impl AsRef<P>, timeout: Duration) -> Result<$guard, $error> {
            let outcome = self.try_lock_for(&[], &[&path], timeout);
            drop(path);
            outcome
        }

        /// As [`try_lock`](Self::try_lock), but with a guard as of [`lock_arc`](Self::lock_arc).
        ///
        /// # Errors
        ///
        /// As [`try_lock`](Self::try_lock).
        #[track_caller]
        pub fn try_lock_arc(
            self: $arc_self,
            reads: &(impl Roots<P> + ?Sized),
            writes: &(impl Roots<P> + ?Sized),
        ) -> Result<$arc_guard, $error> {
            self.guard_arc(reads, writes, Patience::None)
        }

        /// As [`try_lock_for`](Self::try_lock_for), but with a guard as of [`lock_arc`](Self::lock_arc).
        ///
        /// # Errors
        ///
        /// As [`try_lock_for`](Self::try_lock_for).
        #[track_caller]
        pub fn try_lock_arc_for(
            self: $arc_self,
            reads: &(impl Roots<P> + ?Sized),
            writes: &(impl Roots<P> + ?Sized),
            timeout: Duration,
        ) -> Result<$arc_guard, $error> {
            self.guard_arc(reads, writes, Patience::within(timeout))
        }

        /// As [`try_lock_until`](Self::try_lock_until), but with a guard as of [`lock_arc`](Self::lock_arc).
        ///
        /// # Errors
        ///
        /// As [`try_lock_for`](Self::try_lock_for).
        #[track_caller]
        pub fn try_lock_arc_until(
            self: $arc_self,
            reads: &(impl Roots<P> + ?Sized),
            writes: &(impl Roots<P> + ?Sized),
            deadline: Instant,
        ) -> Result<$arc_guard, $error> {
            self.guard_arc(reads, writes, Patience::Until(Some(deadline)))
        }

        /// As [`try_read`](Self::try_read), but with a guard as of [`lock_arc`](Self::lock_arc).
        ///
        /// # Errors
        ///
        /// As [`try_lock`](Self::try_lock).
        #[track_caller]
        pub fn try_read_arc(self: $arc_self, path: impl AsRef<P>) -> Result<$arc_guard, $error> {
            let outcome = self.try_lock_arc(&[&path], &[]);
            drop(path);
            outcome
        }

        /// As [`try_write`](Self::try_write), but with a guard as of [`lock_arc`](Self::lock_arc).
        ///
        /// # Errors
        ///
        /// As [`try_lock`](Self::try_lock).
        #[track_caller]
        pub fn try_write_arc(self: $arc_self, path: impl AsRef<P>) -> Result<$arc_guard, $error> {
            let outcome = self.try_lock_arc(&[], &[&path]);
            drop(path);
            outcome
        }

        /// As [`try_read_for`](Self::try_read_for), but with a guard as of [`lock_arc`](Self::lock_arc).
        ///
        /// # Errors
        ///
        /// As [`try_lock_for`](Self::try_lock_for).
        #[track_caller]
        pub fn try_read_arc_for(
            self: $arc_self,
            path: impl AsRef<P>,
            timeout: Duration,
        ) -> Result<$arc_guard, $error> {
            let outcome = self.try_lock_arc_for(&[&path], &[], timeout);
            drop(path);
            outcome
        }

        /// As [`try_write_for`](Self::try_write_for), but with a guard as of [`lock_arc`](Self::lock_arc).
        ///
        /// # Errors
        ///
        /// As [`try_lock_for`](Self::try_lock_for).
        #[track_caller]
        pub fn try_write_arc_for(
            self: $arc_self,
            path: impl AsRef<P>,
            timeout: Duration,
        ) -> Result<$arc_guard, $error> {
            let outcome = self.try_lock_arc_for(&[], &[&path], timeout);
            drop(path);
            outcome
        }

        #[track_caller]
        fn guard(
            &self,
            reads: &(impl Roots<P> + ?Sized),
            writes: &(impl Roots<P> + ?Sized),
            patience: Patience,
        ) -> Result<$guard, $error> {
            let wait = $crate::trace::Wait::begin();
            let granted = self.acquire(reads.as_slice(), writes.as_slice(), Owner::Thread, patience);
            let outcome = granted.map(|granted| <$guard>::new(self, granted));
            wait.end(std::panic::Location::caller(), &outcome, reads, writes);
            outcome
        }

        #[track_caller]
        fn guard_arc(
            self: $arc_self,
            reads: &(impl Roots<P> + ?Sized),
            writes: &(impl Roots<P> + ?Sized),
            patience: Patience,
        ) -> Result<$arc_guard, $error> {
            let wait = $crate::trace::Wait::begin();
            let granted = self.acquire(reads.as_slice(), writes.as_slice(), Owner::Itself, patience);
            let outcome = granted.map(|granted| <$arc_guard>::new(self, granted));
            wait.end(std::panic::Location::caller(), &outcome, reads, writes);
            outcome
        }
    };
}

pub(crate) use lock_methods;
