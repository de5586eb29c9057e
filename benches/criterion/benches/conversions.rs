//! Conversions: the arguments of an `add` as bytes, and back, as an engine process hands them to Chroma.

use _native::bench::{decode_call, encode_call};
use chroma_manager_benches::{arguments_of_add, with_python};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const DIMENSION: usize = 1536;
const COUNTS: [usize; 3] = [1, 100, 1000];

fn conversions(criterion: &mut Criterion) {
    with_python(|py| {
        let mut encode = criterion.benchmark_group("conversions/encode");
        for (name, as_arrays) in [("arrays", true), ("lists", false)] {
            for count in COUNTS {
                let arguments = arguments_of_add(py, count, DIMENSION, as_arrays)?;
                encode.throughput(Throughput::Elements(count as u64));
                encode.bench_function(BenchmarkId::new(name, count), |bencher| {
                    bencher.iter(|| encode_call("add", &arguments, None).expect("it can be encoded"));
                });
            }
        }
        encode.finish();
        let mut decode = criterion.benchmark_group("conversions/decode");
        for count in COUNTS {
            let (bytes, raised) = encode_call("add", &arguments_of_add(py, count, DIMENSION, true)?, None)?;
            assert!(raised.is_empty());
            decode.throughput(Throughput::Elements(count as u64));
            decode.bench_function(BenchmarkId::from_parameter(count), |bencher| {
                bencher.iter(|| decode_call(py, &bytes).map(|call| call.arguments).expect("it can be decoded"));
            });
        }
        decode.finish();
        Ok(())
    });
}

criterion_group!(benches, conversions);
criterion_main!(benches);
