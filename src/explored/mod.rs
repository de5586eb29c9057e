//! Tests of the state machines under many schedules: random ones, and those of PCT, which finds bugs that need few
//! thread switches. A schedule that deadlocks or fails an assertion fails the test, and is printed.
//!
//! | file | what is explored |
//! | --- | --- |
//! | `engine_process.rs` | the scheduler of an engine process, with apps that call, write, fail, manage, release and kill |
//! | `app.rs` | instances, permits and the gate in an app: calls, evictions, cleanups, removals, forks |
//! | `forks.rs` | the gate alone: simultaneous and nested forks |
//!
//! The first two run a model, each in a `model.rs` of its own.
//!
//! `make explore` runs them. `SHUTTLE_RANDOM_SEED=n` chooses other schedules, and `EXPLORE_ITERATIONS=n` their number.
//! `EXPLORE_SCHEDULE=...` replays the schedule that a failed test has printed, in that test.

mod app;
mod engine_process;
mod forks;

use std::env;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, MaxSteps, Runner};

/// The seed of the schedules. It is constant, so that a failure can be reproduced.
const SEED: u64 = 20_261_128;

/// The number of schedules of each kind.
const ITERATIONS: usize = 200;

/// The number of steps after which an execution counts as endless.
const MOST_STEPS: usize = 20_000;

/// The number of times that PCT changes the thread with the highest priority.
const CHANGES: usize = 3;

/// Runs a model under many schedules.
fn explore(model: fn()) {
    if let Ok(schedule) = env::var("EXPLORE_SCHEDULE") {
        return shuttle::replay(model, &schedule);
    }
    let iterations = env::var("EXPLORE_ITERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(ITERATIONS);
    eprintln!("SHUTTLE_RANDOM_SEED defaults to {SEED}");
    Runner::new(RandomScheduler::new_from_seed(SEED, iterations), config()).run(model);
    Runner::new(PctScheduler::new_from_seed(SEED, CHANGES, iterations), config()).run(model);
}

fn config() -> Config {
    let mut config = Config::new();
    config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
    config.silence_warnings = true;
    config
}

/// Returns `true` once in `times` calls, at random.
fn once_in(times: u32) -> bool {
    thread_rng().gen_ratio(1, times)
}
