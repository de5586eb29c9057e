//! The state machines, with their schedules chosen by a program: at random, and by PCT, which finds what needs few changes of
//! threads. A schedule on which a thread waits for ever, or that breaks a promise, fails the test and is printed.
//!
//! | file | what is explored |
//! | --- | --- |
//! | `engine_process.rs` | the scheduler of an engine process, with apps that call, write, fail, manage, release and kill |
//! | `app.rs` | instances, permits and the gate in an app: calls, evictions, cleanups, removals, forks |
//! | `forks.rs` | the gate alone: forks at once and within each other |
//!
//! `make explore` runs them. `SHUTTLE_RANDOM_SEED=n` tries other schedules, `EXPLORE_ITERATIONS=n` more of them, and
//! `EXPLORE_SCHEDULE=...` with the schedule that a failure printed replays it, for the test that it is of.

mod app;
mod engine_process;
mod forks;

use std::env;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, MaxSteps, Runner};

/// The same schedules each time, so that a failure is one again.
const SEED: u64 = 20_261_128;

/// Of each kind.
const ITERATIONS: usize = 200;

/// An execution that has not ended by then never does.
const MOST_STEPS: usize = 20_000;

/// How many times PCT changes which thread goes first.
const CHANGES: usize = 3;

/// Executes a model with many schedules.
fn explore(model: fn()) {
    if let Ok(schedule) = env::var("EXPLORE_SCHEDULE") {
        return shuttle::replay(model, &schedule);
    }
    let iterations = env::var("EXPLORE_ITERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(ITERATIONS);
    eprintln!("SHUTTLE_RANDOM_SEED is {SEED} where it is not set");
    Runner::new(RandomScheduler::new_from_seed(SEED, iterations), config()).run(model);
    Runner::new(PctScheduler::new_from_seed(SEED, CHANGES, iterations), config()).run(model);
}

fn config() -> Config {
    let mut config = Config::new();
    config.max_steps = MaxSteps::FailAfter(MOST_STEPS);
    config.silence_warnings = true;
    config
}

/// Whether something happens that does so in one of `times`.
fn once_in(times: u32) -> bool {
    thread_rng().gen_ratio(1, times)
}
