//! A small runtime of `tokio` of an engine's own, for a client that is asynchronous: whoever asks blocks until the answer is there.

use crate::machine::EngineError;
use std::sync::Arc;
use std::time::Instant;
use tokio::runtime::{Builder, Handle, Runtime};

/// It is there until this is dropped.
pub(super) struct Blocking(Option<Runtime>);

impl Drop for Blocking {
    fn drop(&mut self) {
        // Which does not block, as a thread of another runtime may not.
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

impl Blocking {
    /// With at most so many threads for what blocks in it.
    pub(super) fn new(blocking: usize) -> Result<Self, EngineError> {
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(blocking).build();
        Ok(Blocking(Some(runtime.map_err(|error| EngineError::Refused(Arc::new(error)))?)))
    }

    /// Has a call made, and gives it up at the deadline.
    pub(super) fn run<T: Send>(
        &self,
        deadline: Instant,
        call: impl Future<Output = Result<T, EngineError>> + Send,
    ) -> Result<T, EngineError> {
        let runtime = self.0.as_ref().expect("it is there until it is dropped");
        let timed = async { tokio::time::timeout_at(deadline.into(), call).await };
        let answer = match Handle::try_current() {
            Err(_) => runtime.block_on(timed),
            // A thread of a runtime may not enter another one.
            Ok(_) => std::thread::scope(|scope| {
                let answer = scope.spawn(|| runtime.block_on(timed)).join();
                answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            }),
        };
        answer.unwrap_or_else(|_| Err(EngineError::away("it does not answer in time")))
    }
}
