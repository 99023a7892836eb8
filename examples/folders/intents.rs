//! Records of what is about to be done, so that others can finish it.
//!
//! A worker may be killed, or lose its lease, between two writes of one operation. So before the first one it writes an
//! *intent*, an object that tells the operation and the folders, and after the last one it removes that. Whoever is let
//! in later looks for intents that conflict with what it holds, and finishes them before it believes anything that it
//! sees. So:
//!
//! 1. An intent that conflicts with what a holder has is of one whose lease is lost: any other has removed its own
//!    before it released the lock.
//! 2. A holder sees all such intents, since it fences off what it has before it looks: one that is written late is
//!    refused, as any other late write.
//! 3. So no two intents conflict, and they may be finished in any order.
//! 4. An intent has a name of its own, and one that is finished stays so. So whoever has finished it may remove it, at
//!    any time, as may all others who have.
//! 5. To finish it is to do all of it again (`Worker::carry_out`), with the locks that it needs. One that is killed in
//!    that leaves the intent for the next.
//!
//! Threads die together, and their lock has no leases; so they write none.

use crate::lock::{Guard, Roots};
use crate::store::{Fault, INTENTS, Key, Store};
use crate::worker::{Operation, Task};
use object_store::ObjectStoreExt;
use serde_json::{Value, json};

pub(crate) struct Intent {
    key: Key,
    pub(crate) task: Task,
}

impl Store {
    /// Writes an intent, if the guard can be lost. Needs what the task needs.
    pub(crate) fn intend(&self, task: &Task, guard: &Guard, worker: u64) -> Result<Option<Intent>, Fault> {
        let Some(fence) = guard.fence() else { return Ok(None) };
        // Grants that do not conflict may have the same fence.
        let key = Key::from(INTENTS).join(format!("{fence}-{worker}"));
        let Task { operation, here, there } = task;
        let record = json!({
            "operation": operation.name(), "here": here.as_ref(), "there": there.as_ref(), "fence": fence
        });
        self.change(&task.roots(), guard, self.objects.put(&key, record.to_string().into()))?;
        Ok(Some(Intent { key, task: task.clone() }))
    }

    /// One that conflicts with what the guard has.
    pub(crate) fn left_intent(&self, roots: &Roots, guard: &Guard) -> Result<Option<Intent>, Fault> {
        if guard.fence().is_none() {
            return Ok(None);
        }
        for key in self.list(&INTENTS.into())? {
            // Another worker may just have removed it.
            if let Some(intent) = self.read_intent(key)?.filter(|intent| intent.task.roots().conflict_with(roots)) {
                return Ok(Some(intent));
            }
        }
        Ok(None)
    }

    pub(crate) fn has_intent(&self, intent: &Intent) -> Result<bool, Fault> {
        Ok(self.ask_if_there(self.objects.head(&intent.key))?.is_some())
    }

    pub(crate) fn remove_intent(&self, intent: &Intent) -> Result<(), Fault> {
        self.ask_if_there(self.objects.delete(&intent.key)).map(drop)
    }

    /// The workers that have one.
    #[cfg(feature = "machine")]
    pub(crate) fn intending_workers(&self) -> Result<Vec<u64>, Fault> {
        let worker = |key: &Key| key.as_ref().rsplit_once('-')?.1.parse().ok();
        Ok(self.list(&INTENTS.into())?.iter().filter_map(worker).collect())
    }

    fn read_intent(&self, key: Key) -> Result<Option<Intent>, Fault> {
        let Some(bytes) = self.ask_if_there(async { self.objects.get(&key).await?.bytes().await })? else {
            return Ok(None);
        };
        let task = serde_json::from_slice::<Value>(&bytes).ok().and_then(|record| {
            let folder = |name| Key::parse(record[name].as_str()?).ok();
            let operation = Operation::ALL.into_iter().find(|operation| record["operation"] == operation.name())?;
            Some(Task { operation, here: folder("here")?, there: folder("there")? })
        });
        match task {
            Some(task) => Ok(Some(Intent { key, task })),
            None => Err(Fault::Failed(format!("{key} is no intent"))),
        }
    }
}
