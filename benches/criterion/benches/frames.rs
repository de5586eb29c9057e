//! Frames: writing one to memory, and reading it from there. What a socket costs is not in it.

use std::hint::black_box;

use _native::bench::{Incoming, Kind, write_frame};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// A call without arguments to speak of, a page of text, a batch of 1,000 vectors of 1,536 dimensions.
const BODIES: [usize; 3] = [100, 64 << 10, 1000 * 1536 * 4];

fn frames(criterion: &mut Criterion) {
    let mut write = criterion.benchmark_group("frames/write");
    for size in BODIES {
        let body = vec![7; size];
        let mut sink = Vec::with_capacity(size + 64);
        write.throughput(Throughput::Bytes(size as u64));
        write.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                sink.clear();
                write_frame(&mut sink, Kind::Call, black_box(&body)).expect("it fits");
            });
        });
    }
    write.finish();
    let mut read = criterion.benchmark_group("frames/read");
    for size in BODIES {
        let mut frame = Vec::new();
        write_frame(&mut frame, Kind::Call, &vec![7; size]).expect("it fits");
        read.throughput(Throughput::Bytes(size as u64));
        read.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| {
                let mut source = black_box(frame.as_slice());
                let mut incoming = Incoming::default();
                loop {
                    if let Some(read) = incoming.read_from(&mut source).expect("a frame") {
                        break read;
                    }
                }
            });
        });
    }
    read.finish();
}

criterion_group!(benches, frames);
criterion_main!(benches);
