//! What users see of every scope, written once.
//!
//! These are macros and not one generic lock, so that each scope has methods, guards and errors of its own: signatures,
//! documentation and messages of the compiler name its types and no others.
//!
//! | file | concept |
//! |---|---|
//! | `lock.rs` | the methods that lock |
//! | `guard.rs` | guards: what both of a scope do, how they are dropped and shown |
//! | `stage.rs` | how far a future has come, with the feature `async` |
//! | `error.rs` | errors of requests: how they are shown, and what they become |
//!
//! What a scope gives: its types; `acquire`, by which a request is granted to an owner; the `new` of both guards; and
//! the documentation of what a request can fail with. Threads have their own `lock`, `read` and `write`, which panic
//! where those of the other scopes return an error.

mod error;
mod guard;
mod lock;
#[cfg(feature = "async")]
mod stage;

pub(crate) use error::request_error;
pub(crate) use guard::guards;
pub(crate) use lock::lock_methods;
#[cfg(feature = "async")]
pub(crate) use stage::Stage;
