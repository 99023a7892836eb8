//! The lock between machines, over real servers that the tests start and end.

mod listening;
mod server;
mod smoke;
