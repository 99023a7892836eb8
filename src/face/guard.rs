//! What a guard does.

/// Writes what all guards of a scope do. The methods are given once, and written for each; two of them are for the
/// others here: `let_go` releases what is still held, and `roots` are what is held, or `None` while the lock is busy.
macro_rules! guards {
    (
        $($(#[$attribute:meta])* impl $generics:tt $name:ident $(<$($of:tt),+>)?;)+
        shows $fields:tt;
        $methods:tt
    ) => {
        $($crate::face::guards! {
            @$name [$($attribute),*] [$name $(<$($of),+>)?] $generics $fields $methods
        })+
    };
    (@$name:ident [$($attribute:meta),*] [$guard:ty] [$($generics:tt)*] [$($field:ident)?] { $($methods:tt)+ }) => {
        $(#[$attribute])*
        impl<$($generics)*> $guard {
            $($methods)+
        }

        $(#[$attribute])*
        impl<$($generics)*> Drop for $guard {
            fn drop(&mut self) {
                self.let_go();
            }
        }

        /// Shows the roots and their modes, as in
        #[doc = concat!("`", stringify!($name), " { roots: [X a, S b/c], .. }`.")]
        $(#[$attribute])*
        impl<$($generics)*> std::fmt::Debug for $guard {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut shown = f.debug_struct(stringify!($name));
                match self.roots() {
                    Some(roots) => shown.field("roots", &$crate::drawing::ListOf(&roots)),
                    None => shown.field("busy", &true),
                };
                $(shown.field(stringify!($field), &self.$field());)?
                shown.finish_non_exhaustive()
            }
        }

        /// Shows the first three roots and their modes, as in `X a, S b/c`.
        $(#[$attribute])*
        impl<$($generics)*> std::fmt::Display for $guard {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.roots() {
                    Some(roots) => std::fmt::Display::fmt(&$crate::drawing::FirstOf(&roots), f),
                    None => f.write_str("sub-trees of a lock that is busy"),
                }
            }
        }
    };
}

pub(crate) use guards;
