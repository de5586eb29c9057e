//! The proof in a greeting of which database answers, and its check, which precedes any request.
//!
//! An engine process sends the device and the inode of its directory, and the secret in the lock file that it holds. An
//! app compares them with those of the directory that it wants. The name of a socket alone proves nothing: it may
//! belong to another container, or to a previous owner.

use std::io;
use std::path::Path;

use super::address::Address;
use crate::storage::directory::{FileId, file_id};
use crate::storage::owner::Secret;

const LENGTH: usize = 16 + Secret::LENGTH;

/// Returns the proof that the owner of the working directory sends.
pub fn prove(secret: &Secret) -> io::Result<[u8; LENGTH]> {
    let home = file_id(Path::new(".")).ok_or(io::ErrorKind::NotFound)?;
    Ok(proof(home, secret))
}

/// Removes the proof from a greeting, and returns whether the owner at `address` has sent it. Returns `None` if the
/// greeting has no proof. Must not be called while attached to the interpreter.
pub fn check(greeting: &mut Vec<u8>, address: &Address) -> Option<bool> {
    let found: [u8; LENGTH] = greeting.get(..LENGTH)?.try_into().ok()?;
    greeting.drain(..LENGTH);
    let expected = file_id(&address.directory).zip(address.owner.secret).map(|(home, secret)| proof(home, &secret));
    Some(expected == Some(found))
}

fn proof((device, inode): FileId, secret: &Secret) -> [u8; LENGTH] {
    let mut proof = [0; LENGTH];
    proof[..8].copy_from_slice(&device.to_le_bytes());
    proof[8..16].copy_from_slice(&inode.to_le_bytes());
    proof[16..].copy_from_slice(&secret.bytes());
    proof
}
