//! The registry: what `get_client` costs if the thread has the client, and registering a new one.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use _native::bench::{ClientKey, ClientKeyRef, Key, Registry};
use chroma_manager_benches::with_python;
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use pyo3::prelude::*;
use pyo3::types::PyDict;

fn key(number: usize) -> Key {
    Key::new(&format!("doc{number}"), "azure").expect("a valid key")
}

fn insert(py: Python<'_>, registry: &Arc<Registry>, number: usize) -> PyResult<()> {
    let instance = registry.instance(py, &key(number), Path::new("/tmp"));
    let client = PyDict::new(py).into_any();
    let own = ClientKey { instance: key(number), user_id: None };
    assert!(registry.insert(py, own, &client, &instance, Arc::default())?);
    Ok(())
}

fn registry(criterion: &mut Criterion) {
    with_python(|py| {
        let mut find = criterion.benchmark_group("registry/find");
        for clients in [1, 100, 10_000] {
            let registry = Arc::<Registry>::default();
            (0..clients).try_for_each(|number| insert(py, &registry, number))?;
            let wanted = ClientKeyRef { file_id: "doc0", embedding_type: "azure", user_id: None };
            assert!(registry.find(py, wanted, true).is_some());
            find.bench_function(BenchmarkId::from_parameter(clients), |bencher| {
                bencher.iter(|| registry.find(py, black_box(wanted), true));
            });
        }
        find.finish();
        criterion.bench_function("registry/insert", |bencher| {
            bencher.iter_batched(
                Arc::<Registry>::default,
                |registry| insert(py, &registry, 0).map(|()| registry),
                BatchSize::SmallInput,
            );
        });
        Ok(())
    });
}

criterion_group!(benches, registry);
criterion_main!(benches);
