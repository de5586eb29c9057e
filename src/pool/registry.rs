//! Which thread holds which client of which instance.
//!
//! A thread finds its clients in a slot of its own, through a thread-local of Rust: that is what makes a hit cheap. The
//! end of the thread is seen through a thread-local of Python, whose value is dropped with the interpreter attached; the
//! one of Rust is dropped without it, and has nothing of Python left in it by then.
//!
//! The locks here are taken attached only and held for a few instructions (see `attached`), so a fork, which happens
//! attached too, catches nobody holding one. What a forked child inherits is forgotten at its first use: not dropped,
//! because an engine that is dropped in a process it does not run in hangs.

use std::cell::RefCell;
use std::mem;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, ThreadId};

use hashbrown::{HashMap, HashSet};
use parking_lot::Mutex;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::engine::Instance;
use crate::instance::key::{ClientKey, ClientKeyRef, Key};
use crate::python::gil::Lock;
use crate::sync::fork_gate;

/// The instances of a manager, and the slots of the threads that use them.
#[derive(Default)]
pub struct Registry {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    generation: u64,
    instances: HashMap<Key, Arc<Instance>>,
    /// Keys of databases that were there in this process's life.
    known: HashSet<Key>,
    /// Whose database is being put there, and by which thread.
    awaited: HashMap<Key, ThreadId>,
    slots: Vec<Weak<Slot>>,
    hits_of_ended_threads: u64,
}

/// The clients of one thread.
struct Slot {
    generation: u64,
    /// Of the registry that it belongs to: a manager may be shut down and another one made.
    registry: Weak<Registry>,
    content: Mutex<Content>,
}

#[derive(Default)]
struct Content {
    clients: HashMap<ClientKey, Entry>,
    hits: u64,
}

struct Entry {
    client: Py<PyAny>,
    instance: Arc<Instance>,
    /// See `connection.rs`.
    asked_for: Arc<AtomicBool>,
}

/// How many threads hold how many clients of an instance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holders {
    pub threads: usize,
    pub clients: usize,
}

thread_local! {
    static SLOT: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
}

impl Registry {
    /// This thread's client, if it has one, whose next call may create its database or not. No other thread's lock is
    /// involved, and nothing is allocated.
    pub fn find(self: &Arc<Self>, py: Python<'_>, key: ClientKeyRef<'_>, may_create: bool) -> Option<Py<PyAny>> {
        SLOT.with_borrow(|slot| {
            let slot = slot.as_ref().filter(|slot| slot.belongs_to(self))?;
            let mut content = slot.content.take(py);
            let entry = content.clients.get(&key)?;
            entry.instance.touch();
            entry.asked_for.store(may_create, Ordering::Relaxed);
            let client = entry.client.clone_ref(py);
            content.hits += 1;
            Some(client)
        })
    }

    /// Makes `client` this thread's own; tells whether it could: not if the instance was cleaned up meanwhile.
    pub fn insert(
        self: &Arc<Self>,
        py: Python<'_>,
        key: ClientKey,
        client: &Bound<'_, PyAny>,
        instance: &Arc<Instance>,
        asked_for: Arc<AtomicBool>,
    ) -> PyResult<bool> {
        let slot = self.slot_of_this_thread(py)?;
        let entry = Entry { client: client.clone().unbind(), instance: Arc::clone(instance), asked_for };
        let replaced = {
            let mut content = slot.content.take(py);
            // Checked under the lock: a cleanup ends the instance first and looks into the slots afterwards.
            if instance.is_cleaned_up() {
                return Ok(false);
            }
            content.clients.insert(key, entry)
        };
        drop(replaced);
        Ok(true)
    }

    /// Forgets this thread's clients.
    pub fn clear_this_thread(self: &Arc<Self>, py: Python<'_>) {
        let slot = SLOT.with_borrow(|slot| slot.clone().filter(|slot| slot.belongs_to(self)));
        if let Some(slot) = slot {
            slot.clear(py);
        }
    }

    /// Forgets one client, in whichever thread it is.
    pub fn forget_client(&self, py: Python<'_>, client: &Bound<'_, PyAny>) {
        self.forget_clients(py, |entry| entry.client.is(client));
    }

    /// Forgets all clients of an instance, in all threads.
    pub fn forget_clients_of(&self, py: Python<'_>, instance: &Arc<Instance>) {
        self.forget_clients(py, |entry| Arc::ptr_eq(&entry.instance, instance));
    }

    fn forget_clients(&self, py: Python<'_>, is_meant: impl Fn(&Entry) -> bool) {
        for slot in self.slots(py) {
            let forgotten: Vec<_> =
                slot.content.take(py).clients.extract_if(|_, entry| is_meant(entry)).map(|(_, entry)| entry).collect();
            // Given up without the lock: dropping an object of Python may run any code.
            drop(forgotten);
        }
    }

    /// The instance of that key; a new one, closed, where there is none.
    pub fn instance(&self, py: Python<'_>, key: &Key, base_path: &Path) -> Arc<Instance> {
        let mut table = self.table(py);
        let instance =
            table.instances.entry_ref(key).or_insert_with(|| Arc::new(Instance::new(key.clone(), base_path)));
        Arc::clone(instance)
    }

    /// The instance of that key, where there is one.
    pub fn existing(&self, py: Python<'_>, key: &Key) -> Option<Arc<Instance>> {
        self.table(py).instances.get(key).cloned()
    }

    /// All instances.
    pub fn instances(&self, py: Python<'_>) -> Vec<Arc<Instance>> {
        self.table(py).instances.values().cloned().collect()
    }

    /// Forgets an instance that has ended and is closed.
    pub fn forget(&self, py: Python<'_>, instance: &Arc<Instance>) {
        let mut table = self.table(py);
        if table.instances.get(instance.key()).is_some_and(|known| Arc::ptr_eq(known, instance)) {
            table.instances.remove(instance.key());
        }
    }

    /// Forgets the instances that are closed and that nobody could come back to.
    pub fn forget_unused(&self, py: Python<'_>) {
        self.table(py)
            .instances
            .retain(|_, instance| Arc::strong_count(instance) > 1 || !instance.state.take(py).is_closed());
    }

    /// Notes that there is a database of that key; tells whether there was one before.
    pub fn note(&self, py: Python<'_>, key: &Key) -> bool {
        !self.table(py).known.insert(key.clone())
    }

    /// Which thread puts the database of that key there: from now on this one, if there was none before.
    pub fn begin_putting(&self, py: Python<'_>, key: &Key) -> Option<ThreadId> {
        let mut table = self.table(py);
        let other = table.awaited.get(key).copied();
        if other.is_none() {
            table.awaited.insert(key.clone(), thread::current().id());
        }
        other
    }

    /// Whether somebody still does.
    pub fn is_awaited(&self, py: Python<'_>, key: &Key) -> bool {
        self.table(py).awaited.contains_key(key)
    }

    /// This thread does so no more.
    pub fn end_putting(&self, py: Python<'_>, key: &Key) {
        self.table(py).awaited.remove(key);
    }

    /// Who holds clients, by instance.
    pub fn holders(&self, py: Python<'_>) -> HashMap<Key, Holders> {
        let mut holders: HashMap<Key, Holders> = HashMap::new();
        for slot in self.slots(py) {
            let content = slot.content.take(py);
            let mut seen = HashSet::new();
            for key in content.clients.keys() {
                let of_instance = holders.entry_ref(&key.instance).or_default();
                of_instance.clients += 1;
                of_instance.threads += usize::from(seen.insert(&key.instance));
            }
        }
        holders
    }

    /// How often a thread found its client.
    pub fn hits(&self, py: Python<'_>) -> u64 {
        let of_living: u64 = self.slots(py).iter().map(|slot| slot.content.take(py).hits).sum();
        of_living + self.table(py).hits_of_ended_threads
    }

    fn slots(&self, py: Python<'_>) -> Vec<Arc<Slot>> {
        self.table(py).slots.iter().filter_map(Weak::upgrade).collect()
    }

    fn table(&self, py: Python<'_>) -> parking_lot::MutexGuard<'_, Table> {
        let mut table = self.table.take(py);
        let generation = fork_gate::generation();
        if table.generation != generation {
            // In a forked child: what is in here is the parent's.
            mem::forget(mem::replace(&mut *table, Table { generation, ..Table::default() }));
        }
        table
    }

    fn slot_of_this_thread(self: &Arc<Self>, py: Python<'_>) -> PyResult<Arc<Slot>> {
        if let Some(slot) = SLOT.with_borrow(|slot| slot.clone().filter(|slot| slot.belongs_to(self)))
            && slot.sees_end_of_thread(py)?
        {
            return Ok(slot);
        }
        let slot = Arc::new(Slot {
            generation: fork_gate::generation(),
            registry: Arc::downgrade(self),
            content: Mutex::default(),
        });
        let end = Bound::new(py, EndOfThread { slot: Arc::clone(&slot) })?;
        locals(py)?.setattr(intern!(py, "end_of_thread"), end)?;
        let mut table = self.table(py);
        table.slots.retain(|slot| slot.strong_count() > 0);
        table.slots.push(Arc::downgrade(&slot));
        drop(table);
        drop(SLOT.replace(Some(Arc::clone(&slot))));
        Ok(slot)
    }
}

impl Slot {
    fn belongs_to(&self, registry: &Arc<Registry>) -> bool {
        Weak::as_ptr(&self.registry) == Arc::as_ptr(registry) && self.generation == fork_gate::generation()
    }

    /// Whether this thread's Python thread-local still leads here. A thread that Python did not start has a new one each
    /// time it attaches.
    fn sees_end_of_thread(self: &Arc<Self>, py: Python<'_>) -> PyResult<bool> {
        let end = locals(py)?.getattr_opt(intern!(py, "end_of_thread"))?;
        Ok(end.is_some_and(|end| end.cast::<EndOfThread>().is_ok_and(|end| Arc::ptr_eq(&end.get().slot, self))))
    }

    fn clear(&self, py: Python<'_>) {
        let clients = mem::take(&mut self.content.take(py).clients);
        drop(clients);
    }
}

/// The value in Python's thread-local storage that is dropped, attached, when its thread ends.
#[pyclass(frozen, module = "chroma_manager._native")]
struct EndOfThread {
    slot: Arc<Slot>,
}

impl Drop for EndOfThread {
    fn drop(&mut self) {
        Python::attach(|py| {
            let hits = mem::take(&mut self.slot.content.take(py).hits);
            self.slot.clear(py);
            if let Some(registry) = self.slot.registry.upgrade() {
                registry.table(py).hits_of_ended_threads += hits;
            }
        });
    }
}

/// One `threading.local()` for the whole process.
fn locals(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static LOCALS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let locals = LOCALS.get_or_try_init(py, || py.import("threading")?.getattr("local")?.call0().map(Bound::unbind))?;
    Ok(locals.bind(py))
}
