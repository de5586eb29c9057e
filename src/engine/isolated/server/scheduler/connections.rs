//! The connections of an engine process: whose they are, and the notice that they get when it closes.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;

use crate::engine::isolated::protocol::frame::{Kind, Outgoing};

/// All that are open.
#[derive(Debug, Default)]
pub struct Connections {
    open: HashMap<u64, Connection>,
    last_id: u64,
}

#[derive(Debug)]
struct Connection {
    /// The process at the other end.
    peer: Option<u32>,
    stream: UnixStream,
}

impl Connections {
    /// Adds one; returns its id.
    pub fn add(&mut self, peer: Option<u32>, stream: UnixStream) -> u64 {
        self.last_id += 1;
        self.open.insert(self.last_id, Connection { peer, stream });
        self.last_id
    }

    pub fn remove(&mut self, id: u64) {
        self.open.remove(&id);
    }

    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether a process other than this one is connected.
    pub fn has_other_than(&self, peer: Option<u32>) -> bool {
        self.open.values().any(|connection| connection.peer != peer)
    }

    /// Tells all that their unanswered requests were not executed. Does not wait for those who do not read.
    pub fn send_closing_notice(&self) {
        for connection in self.open.values() {
            // Who has disconnected need not be told.
            let _ = connection.stream.set_nonblocking(true);
            let _ = Outgoing::new(Kind::Closing, &[]).map(|mut frame| frame.write_to(&mut &connection.stream));
        }
    }
}
