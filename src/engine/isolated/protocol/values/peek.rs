//! Reading parts of an encoded call without Python.

/// Returns the name at the beginning of an encoded call, if it has a valid one.
pub fn name_of(bytes: &[u8]) -> Option<&str> {
    let (length, rest) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    std::str::from_utf8(rest.get(..length)?).ok()
}

/// Returns the length of the list at `index` of the arguments of a call, if that is a list and all arguments before it
/// are texts.
pub fn items_at(bytes: &[u8], index: usize) -> Option<usize> {
    let count = |bytes: &[u8], tag: u8| {
        let (count, rest) = bytes.strip_prefix(&[tag])?.split_first_chunk()?;
        Some((u32::from_le_bytes(*count) as usize, rest.len()))
    };
    let after = |left: usize| bytes.get(bytes.len() - left..);
    let (_, left) = count(bytes.get(4 + name_of(bytes)?.len()..)?, b't')?;
    let mut rest = after(left)?;
    for _ in 0..index {
        let (length, left) = count(rest, b's')?;
        rest = after(left.checked_sub(length)?)?;
    }
    Some(count(rest, b'l')?.0)
}
