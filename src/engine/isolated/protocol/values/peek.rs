//! What of an encoded call can be told without Python.

/// The name at the beginning of what was encoded, if it has one; without Python.
pub fn name_of(bytes: &[u8]) -> Option<&str> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    std::str::from_utf8(rest.get(..length)?).ok()
}

/// How many items the list at that place of a call's arguments has, as far as that can be told without Python.
pub fn items_at(bytes: &[u8], place: usize) -> Option<usize> {
    let count = |bytes: &[u8], tag: u8| {
        let (count, rest) = bytes.strip_prefix(&[tag])?.split_first_chunk()?;
        Some((u32::from_le_bytes(*count) as usize, rest.len()))
    };
    let after = |left: usize| bytes.get(bytes.len() - left..);
    let (_, left) = count(bytes.get(4 + name_of(bytes)?.len()..)?, b't')?;
    let mut rest = after(left)?;
    for _ in 0..place {
        let (length, left) = count(rest, b's')?;
        rest = after(left.checked_sub(length)?)?;
    }
    Some(count(rest, b'l')?.0)
}
