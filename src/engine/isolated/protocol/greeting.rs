//! Which database answers: what every greeting proves, and how an app checks it before it says a word.
//!
//! An engine process names the device and the inode of its directory, and the secret of the lock file that it holds. An app
//! compares with what it sees in the directory that it wants. A socket's name alone proves nothing: it may be of another
//! container's, or of an owner before.

use std::io;
use std::path::Path;

use super::address::Address;
use crate::storage::directory::{FileId, file_id};
use crate::storage::owner::Secret;

const LENGTH: usize = 16 + Secret::LENGTH;

/// What the owner of the working directory greets with.
pub fn prove(secret: &Secret) -> io::Result<[u8; LENGTH]> {
    let home = file_id(Path::new(".")).ok_or(io::ErrorKind::NotFound)?;
    Ok(proof(home, secret))
}

/// Takes the proof off a greeting; tells whether it is that of the owner whose address this is. `None` where there is none
/// on it. Detached only.
pub fn check(greeting: &mut Vec<u8>, address: &Address) -> Option<bool> {
    let found: [u8; LENGTH] = greeting.get(..LENGTH)?.try_into().ok()?;
    greeting.drain(..LENGTH);
    let wanted = file_id(&address.directory).zip(address.owner.secret).map(|(home, secret)| proof(home, &secret));
    Some(wanted == Some(found))
}

fn proof((device, inode): FileId, secret: &Secret) -> [u8; LENGTH] {
    let mut proof = [0; LENGTH];
    proof[..8].copy_from_slice(&device.to_le_bytes());
    proof[8..16].copy_from_slice(&inode.to_le_bytes());
    proof[16..].copy_from_slice(&secret.bytes());
    proof
}
