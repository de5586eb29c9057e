//! The frames that an app and an engine process exchange, without their content.
//!
//! Plain Rust. A frame is a header of nine bytes (a magic number whose last byte is the protocol version, a kind, and
//! the length of the body as a little-endian u32) and a body. A long response is sent in parts, each of which is a
//! frame. A reader does not trust the header: it allocates memory for the bytes that have arrived, not for those
//! announced.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::time::{Duration, Instant};

/// The protocol version. Every change of the protocol increments it.
pub const VERSION: u8 = 5;

/// The largest body in bytes. It holds a call that adds 300,000 vectors of 1,536 dimensions.
pub const MAX_BODY: u32 = 1 << 31;

/// The length in bytes of the parts of a long response.
pub const PART: usize = 1 << 26;

const MAGIC: [u8; 3] = *b"CMG";
const HEADER: usize = 9;
const CHUNK: usize = 256 * 1024;

/// How long one read or write lasts before the caller gets to check for signals and deadlines.
const SLICE: Duration = Duration::from_millis(50);

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Greeting of the engine process: it is ready. The body has the proof of its database, and notices; the page of
    /// memory with the generation of the catalogue is passed along.
    Hello = 1,
    /// Greeting of the engine process: it could not open the database. The body has the proof, and an exception.
    Failed = 2,
    /// Request of the app: call a method. The body has its name and arguments.
    Call = 3,
    /// Response: the value that the call has returned.
    Returned = 4,
    /// Response: the exception that the call has raised.
    Raised = 5,
    /// Request of the app: release the engine process, which the app's process no longer needs.
    Release = 6,
    /// Response: no other process needs the engine process, which closes the database and ends.
    Closing = 7,
    /// Response: other processes still need the engine process.
    Shared = 8,
    /// Response: the call was not executed, because the directory is no longer the one that was opened.
    Stale = 9,
    /// Request of the app: exclusive maintenance. The body has the name of the task and its arguments.
    Manage = 10,
    /// Request of the app: remove the database, even if other processes use it.
    Delete = 11,
    /// Response: the call was not executed, or not completely, because another call has failed before it and the
    /// database must be reopened. The call can be retried at once.
    Retry = 12,
    /// Greeting of the engine process: it cannot start a thread for another connection now.
    Busy = 13,
    /// A part of a response, which is followed by others. The last part has the kind of the response.
    Part = 14,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        use Kind::{
            Busy, Call, Closing, Delete, Failed, Hello, Manage, Part, Raised, Release, Retry, Returned, Shared, Stale,
        };
        [Hello, Failed, Call, Returned, Raised, Release, Closing, Shared, Stale, Manage, Delete, Retry, Busy, Part]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A received frame.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// The kind.
    pub kind: Kind,
    /// The content.
    pub body: Vec<u8>,
}

/// The reason why bytes are not a frame of this protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The peer speaks another protocol.
    #[error("not a frame of chroma-manager")]
    Magic,
    /// The peer speaks another version of this protocol.
    #[error("protocol version {0}, expected {VERSION}")]
    Version(u8),
    /// The kind does not exist.
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    /// The body is longer than [`MAX_BODY`].
    #[error("a body of {0} bytes, where at most {MAX_BODY} are allowed")]
    TooLarge(u64),
}

impl From<Malformed> for io::Error {
    fn from(malformed: Malformed) -> Self {
        Self::new(ErrorKind::InvalidData, malformed)
    }
}

/// A frame that is read piece by piece.
#[derive(Debug, Default)]
pub struct Incoming {
    header: [u8; HEADER],
    have: usize,
    body: Vec<u8>,
}

impl Incoming {
    /// Continues to read. Returns `None` if the frame is not complete after a timeout of the source or after 50 ms.
    ///
    /// # Errors
    ///
    /// Returns the error of the source, and one for a malformed header or the end of the source.
    pub fn read_from(&mut self, source: &mut impl Read) -> io::Result<Option<Frame>> {
        let began = Instant::now();
        while self.have < HEADER {
            match source.read(&mut self.header[self.have..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.have += count,
                Err(error) => return or_retry(error),
            }
        }
        let (kind, length) = self.parse_header()?;
        while self.body.len() < length {
            let have = self.body.len();
            self.body.resize(length.min(have + CHUNK), 0);
            let read = source.read(&mut self.body[have..]);
            self.body.truncate(have + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) if self.body.len() < length && began.elapsed() > SLICE => return Ok(None),
                Ok(_) => {}
                Err(error) => return or_retry(error),
            }
        }
        self.have = 0;
        Ok(Some(Frame { kind, body: std::mem::take(&mut self.body) }))
    }

    fn parse_header(&self) -> Result<(Kind, usize), Malformed> {
        let [m0, m1, m2, version, kind, l0, l1, l2, l3] = self.header;
        if [m0, m1, m2] != MAGIC {
            return Err(Malformed::Magic);
        }
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let kind = Kind::of(kind).ok_or(Malformed::Kind(kind))?;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length > MAX_BODY {
            return Err(Malformed::TooLarge(length.into()));
        }
        Ok((kind, length as usize))
    }
}

/// Returns the frames of a response: its parts, the last of which has its kind.
pub fn frames(kind: Kind, answer: &[u8]) -> impl Iterator<Item = (Kind, &[u8])> {
    let last = answer.len().saturating_sub(1) / PART * PART;
    let parts = answer[..last].chunks(PART).map(|part| (Kind::Part, part));
    parts.chain([(kind, &answer[last..])])
}

/// A frame that is written piece by piece.
#[derive(Debug)]
pub struct Outgoing<'a> {
    header: [u8; HEADER],
    body: &'a [u8],
    written: usize,
}

impl<'a> Outgoing<'a> {
    /// Creates a frame.
    ///
    /// # Errors
    ///
    /// Returns [`Malformed::TooLarge`] if the body is longer than [`MAX_BODY`].
    pub fn new(kind: Kind, body: &'a [u8]) -> Result<Self, Malformed> {
        let length = u32::try_from(body.len()).ok().filter(|length| *length <= MAX_BODY);
        let [l0, l1, l2, l3] = length.ok_or(Malformed::TooLarge(body.len() as u64))?.to_le_bytes();
        let [m0, m1, m2] = MAGIC;
        Ok(Self { header: [m0, m1, m2, VERSION, kind as u8, l0, l1, l2, l3], body, written: 0 })
    }

    /// Continues to write, and returns whether the frame is complete. If it is not, the sink has timed out, or 50 ms
    /// have passed.
    pub fn write_to(&mut self, sink: &mut impl Write) -> io::Result<bool> {
        let began = Instant::now();
        while self.written < HEADER + self.body.len() {
            // At once: the reader would be woken by the header, and wait for the body.
            let rest = match self.written.checked_sub(HEADER) {
                None => [&self.header[self.written..], self.body],
                Some(of_body) => [&[][..], &self.body[of_body..]],
            };
            match sink.write_vectored(&rest.map(IoSlice::new)) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) => return or_retry(error).map(|_: Option<()>| false),
            }
            if began.elapsed() > SLICE && self.written < HEADER + self.body.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Writes a whole frame to a blocking sink.
pub fn write_frame(sink: &mut impl Write, kind: Kind, body: &[u8]) -> io::Result<()> {
    let mut frame = Outgoing::new(kind, body)?;
    while !frame.write_to(sink)? {}
    Ok(())
}

/// Returns `Ok(None)` for an error after which the caller tries again.
fn or_retry<T>(error: io::Error) -> io::Result<Option<T>> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => Ok(None),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests;
