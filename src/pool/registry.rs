//! The clients of a manager: which thread holds which client of which instance.
//!
//! A thread finds its clients in a slot of its own through a Rust thread-local, which makes a hit cheap. A Python
//! thread-local detects the end of the thread: its value is dropped while attached to the interpreter, and clears the
//! slot. The Rust thread-local is dropped later, detached, and refers to no Python object by then.
//!
//! The locks here are acquired while attached and held for a few instructions (see `python/gil.rs`). A fork happens
//! attached, too, and therefore never catches a thread holding one. The entries that a forked child inherits are leaked
//! at its first use of the registry: dropping an engine in a process that does not run it hangs.

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

/// The instances of a manager, and the slots of the threads that hold their clients.
#[derive(Default)]
pub struct Registry {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    generation: u64,
    instances: HashMap<Key, Arc<Instance>>,
    /// The keys of the databases that this process has opened at some time.
    known: HashSet<Key>,
    /// The databases that `on_missing` is providing, and the thread that does so.
    being_provided: HashMap<Key, ThreadId>,
    slots: Vec<Weak<Slot>>,
    hits_of_ended_threads: u64,
}

/// The clients of one thread.
struct Slot {
    generation: u64,
    /// The registry of the slot: a manager may be shut down and another one constructed.
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
    /// See `Connection::may_create`.
    may_create: Arc<AtomicBool>,
}

/// The number of threads that hold clients of an instance, and the number of these clients.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holders {
    /// The number of threads.
    pub threads: usize,
    /// The number of clients.
    pub clients: usize,
}

thread_local! {
    static SLOT: RefCell<Option<Arc<Slot>>> = const { RefCell::new(None) };
}

impl Registry {
    /// Returns this thread's client, if it has one, and sets whether the client's next call may create the database.
    /// Acquires no lock of another thread, and allocates nothing.
    pub fn find(self: &Arc<Self>, py: Python<'_>, key: ClientKeyRef<'_>, may_create: bool) -> Option<Py<PyAny>> {
        SLOT.with_borrow(|slot| {
            let slot = slot.as_ref().filter(|slot| slot.belongs_to(self))?;
            let mut content = slot.content.take(py);
            let entry = content.clients.get(&key)?;
            entry.instance.touch();
            entry.may_create.store(may_create, Ordering::Relaxed);
            let client = entry.client.clone_ref(py);
            content.hits += 1;
            Some(client)
        })
    }

    /// Registers `client` as this thread's own. Returns `false`, and does nothing, if the instance was cleaned up.
    pub fn insert(
        self: &Arc<Self>,
        py: Python<'_>,
        key: ClientKey,
        client: &Bound<'_, PyAny>,
        instance: &Arc<Instance>,
        may_create: Arc<AtomicBool>,
    ) -> PyResult<bool> {
        let slot = self.slot_of_this_thread(py)?;
        let entry = Entry { client: client.clone().unbind(), instance: Arc::clone(instance), may_create };
        let replaced = {
            let mut content = slot.content.take(py);
            // Checked under the lock: a cleanup first marks the instance and then clears the slots.
            if instance.is_cleaned_up() {
                return Ok(false);
            }
            content.clients.insert(key, entry)
        };
        drop(replaced);
        Ok(true)
    }

    /// Removes this thread's clients.
    pub fn clear_this_thread(self: &Arc<Self>, py: Python<'_>) {
        let slot = SLOT.with_borrow(|slot| slot.clone().filter(|slot| slot.belongs_to(self)));
        if let Some(slot) = slot {
            slot.clear(py);
        }
    }

    /// Removes one client, whichever thread holds it.
    pub fn forget_client(&self, py: Python<'_>, client: &Bound<'_, PyAny>) {
        self.forget_clients(py, |entry| entry.client.is(client));
    }

    /// Removes all clients of an instance, in all threads.
    pub fn forget_clients_of(&self, py: Python<'_>, instance: &Arc<Instance>) {
        self.forget_clients(py, |entry| Arc::ptr_eq(&entry.instance, instance));
    }

    fn forget_clients(&self, py: Python<'_>, is_meant: impl Fn(&Entry) -> bool) {
        for slot in self.slots(py) {
            let forgotten: Vec<_> =
                slot.content.take(py).clients.extract_if(|_, entry| is_meant(entry)).map(|(_, entry)| entry).collect();
            // Dropped without the lock: dropping a Python object may run arbitrary code.
            drop(forgotten);
        }
    }

    /// Returns the instance of a key, creating a closed one if there is none.
    pub fn instance(&self, py: Python<'_>, key: &Key, base_path: &Path) -> Arc<Instance> {
        let mut table = self.table(py);
        let instance =
            table.instances.entry_ref(key).or_insert_with(|| Arc::new(Instance::new(key.clone(), base_path)));
        Arc::clone(instance)
    }

    /// Returns the instance of a key, if there is one.
    pub fn existing(&self, py: Python<'_>, key: &Key) -> Option<Arc<Instance>> {
        self.table(py).instances.get(key).cloned()
    }

    /// Returns all instances.
    pub fn instances(&self, py: Python<'_>) -> Vec<Arc<Instance>> {
        self.table(py).instances.values().cloned().collect()
    }

    /// Removes an instance that was cleaned up and is closed.
    pub fn forget(&self, py: Python<'_>, instance: &Arc<Instance>) {
        let mut table = self.table(py);
        if table.instances.get(instance.key()).is_some_and(|known| Arc::ptr_eq(known, instance)) {
            table.instances.remove(instance.key());
        }
    }

    /// Removes the closed instances that nothing else refers to.
    pub fn forget_unused(&self, py: Python<'_>) {
        self.table(py)
            .instances
            .retain(|_, instance| Arc::strong_count(instance) > 1 || !instance.state.take(py).is_closed());
    }

    /// Records that a database with this key exists. Returns whether one was recorded before.
    pub fn mark_known(&self, py: Python<'_>, key: &Key) -> bool {
        !self.table(py).known.insert(key.clone())
    }

    /// Returns the thread that is providing the database of this key. If there is none, returns `None`, and records
    /// this thread.
    pub fn begin_providing(&self, py: Python<'_>, key: &Key) -> Option<ThreadId> {
        let mut table = self.table(py);
        let other = table.being_provided.get(key).copied();
        if other.is_none() {
            table.being_provided.insert(key.clone(), thread::current().id());
        }
        other
    }

    /// Returns whether a thread is providing the database of this key.
    pub fn is_being_provided(&self, py: Python<'_>, key: &Key) -> bool {
        self.table(py).being_provided.contains_key(key)
    }

    /// Records that this thread no longer provides the database of this key.
    pub fn end_providing(&self, py: Python<'_>, key: &Key) {
        self.table(py).being_provided.remove(key);
    }

    /// Returns the numbers of threads and clients of each instance.
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

    /// Returns how often a thread has found its client.
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
            // In a forked child, the entries belong to the parent.
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

    /// Returns whether this thread's Python thread-local still refers to this slot. A thread that Python did not start
    /// gets a new thread-local each time it attaches.
    fn sees_end_of_thread(self: &Arc<Self>, py: Python<'_>) -> PyResult<bool> {
        let end = locals(py)?.getattr_opt(intern!(py, "end_of_thread"))?;
        Ok(end.is_some_and(|end| end.cast::<EndOfThread>().is_ok_and(|end| Arc::ptr_eq(&end.get().slot, self))))
    }

    fn clear(&self, py: Python<'_>) {
        let clients = mem::take(&mut self.content.take(py).clients);
        drop(clients);
    }
}

/// The value in Python's thread-local storage. It is dropped, attached, when its thread ends, and clears the slot.
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

/// Returns the `threading.local()` of this module, of which the process has one.
fn locals(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static LOCALS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let locals = LOCALS.get_or_try_init(py, || py.import("threading")?.getattr("local")?.call0().map(Bound::unbind))?;
    Ok(locals.bind(py))
}
