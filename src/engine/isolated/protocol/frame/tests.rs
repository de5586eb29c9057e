//! Frames: written and read a few bytes at a time, truncated, and of another version.

use super::*;
use proptest::prelude::*;

/// A source and sink that transfers a few bytes at a time, and would block in between.
struct Trickle {
    bytes: Vec<u8>,
    at: usize,
    step: usize,
    dry: bool,
}

impl Trickle {
    fn of(bytes: Vec<u8>, step: usize) -> Self {
        Self { bytes, at: 0, step, dry: true }
    }

    fn is_dry(&mut self) -> io::Result<()> {
        self.dry = !self.dry;
        if self.dry { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }
}

impl Read for Trickle {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.is_dry()?;
        let count = self.step.min(buffer.len()).min(self.bytes.len() - self.at);
        buffer[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

impl Write for Trickle {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.is_dry()?;
        let count = self.step.min(buffer.len());
        self.bytes.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn frame_bytes(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, kind, body).unwrap();
    bytes
}

fn read_all(mut source: impl Read) -> io::Result<Frame> {
    let mut incoming = Incoming::default();
    loop {
        if let Some(frame) = incoming.read_from(&mut source)? {
            return Ok(frame);
        }
    }
}

#[test]
fn a_response_has_as_many_parts_as_it_needs() {
    for (length, parts) in [(0, 0), (1, 0), (PART, 0), (PART + 1, 1), (3 * PART, 2)] {
        let answer = vec![7; length];
        let frames: Vec<_> = frames(Kind::Returned, &answer).collect();
        assert_eq!(frames.iter().filter(|(kind, _)| *kind == Kind::Part).count(), parts);
        assert_eq!(frames.last().unwrap().0, Kind::Returned);
        assert_eq!(frames.iter().map(|(_, part)| part.len()).sum::<usize>(), length);
        assert!(length == 0 || frames.iter().all(|(_, part)| (1..=PART).contains(&part.len())));
    }
}

#[test]
fn the_error_names_the_version_of_the_peer() {
    let mut bytes = frame_bytes(Kind::Call, b"x");
    bytes[3] = VERSION + 1;
    let error = read_all(&bytes[..]).unwrap_err();
    assert!(error.to_string().contains(&format!("version {}", VERSION + 1)), "{error}");
}

#[test]
fn a_header_that_announces_much_allocates_little() {
    let mut bytes = frame_bytes(Kind::Call, b"");
    bytes[5..9].copy_from_slice(&MAX_BODY.to_le_bytes());
    let mut incoming = Incoming::default();
    assert!(incoming.read_from(&mut &bytes[..]).is_err(), "the source has ended");
    assert!(incoming.body.capacity() <= 2 * CHUNK);
    bytes[5..9].copy_from_slice(&(MAX_BODY + 1).to_le_bytes());
    assert_eq!(read_all(&bytes[..]).unwrap_err().kind(), ErrorKind::InvalidData);
}

proptest! {
    #[test]
    fn a_frame_survives_a_round_trip(body in proptest::collection::vec(any::<u8>(), 0..600), step in 1_usize..50) {
        let mut sink = Trickle::of(Vec::new(), step);
        let mut outgoing = Outgoing::new(Kind::Returned, &body).unwrap();
        while !outgoing.write_to(&mut sink).unwrap() {}
        let frame = read_all(Trickle::of(sink.bytes, step)).unwrap();
        prop_assert_eq!(frame, Frame { kind: Kind::Returned, body });
    }

    #[test]
    fn a_truncated_frame_is_an_error(body in proptest::collection::vec(any::<u8>(), 0..60), cut in 0_usize..68) {
        let bytes = frame_bytes(Kind::Call, &body);
        prop_assume!(cut < bytes.len());
        prop_assert_eq!(read_all(&bytes[..cut]).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn random_bytes_are_an_error_and_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assume!(!bytes.starts_with(&MAGIC));
        prop_assert!(read_all(&bytes[..]).is_err());
    }
}
