//! The graph of an HNSW index, as bytes of hnswlib's files: where its links lead, and which labels its elements have.
//!
//! Links of the lowest level are at the beginning of each element in `data_level0.bin`; those of the higher levels are in
//! `link_lists.bin`. What else the files hold is in the Python half (`storage/hnsw_files.py`). Any of them can be damaged.

use std::collections::HashMap;

/// Bytes before the links of an element on one level: how many there are (16 bits), and what marks a deleted element.
const LINKS: usize = 4;

/// The byte of an element, and its bit, that mark a deleted one.
const FLAGS: (usize, u8) = (2, 1);

/// Where things are in the files of an index (`storage/hnsw_graph.py`).
#[derive(Clone, Debug)]
#[cfg_attr(feature = "python", derive(pyo3::FromPyObject))]
pub struct Layout {
    /// How many elements there are.
    pub elements: usize,
    /// How many bytes an element has.
    pub element_size: usize,
    /// Where its label is.
    pub label_offset: usize,
    /// The highest level; -1 where there is no element.
    pub max_level: i64,
    /// The element at which a search begins.
    pub entry_point: usize,
    /// How many links an element has at most on a higher level; on the lowest one it has twice as many.
    pub neighbors: usize,
}

impl Layout {
    /// The elements of `data_level0.bin`; none where the file is too short for all of them.
    fn elements_of<'a>(&self, data: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let whole = self.elements.checked_mul(self.element_size).and_then(|size| part(data, 0, size));
        whole.unwrap_or_default().chunks_exact(self.element_size)
    }
}

/// Checks the links of the lowest level: Chroma would die of one that leads out of the file.
///
/// # Errors
///
/// Returns what is wrong.
pub fn check_links(data: &[u8], layout: &Layout) -> Result<(), &'static str> {
    for element in layout.elements_of(data) {
        let _ = links(element, 0, layout, 2 * layout.neighbors)?;
    }
    Ok(())
}

/// Checks that each link of a higher level leads to an element of that level.
///
/// # Errors
///
/// Returns what is wrong.
pub fn check_levels(upper: &[u8], layout: &Layout) -> Result<(), &'static str> {
    const SHORT: &str = "link_lists.bin ends before its last element";
    let size = LINKS + 4 * layout.neighbors;
    let (mut levels, mut at) = (Vec::new(), 0);
    for _ in 0..layout.elements {
        let taken = u32_at(upper, at).ok_or(SHORT)? as usize;
        if !taken.is_multiple_of(size) {
            return Err("the links of an element have no possible size");
        }
        levels.push(taken / size);
        at += 4 + taken;
    }
    if at != upper.len() {
        return Err(if at > upper.len() { SHORT } else { "link_lists.bin goes on after its last element" });
    }
    if !levels.is_empty() {
        let highest = usize::try_from(layout.max_level).ok();
        if levels.get(layout.entry_point).copied() != highest || levels.iter().max().copied() != highest {
            return Err("it is not entered at its highest level");
        }
    }
    at = 4;
    for own in &levels {
        for level in 1..=*own {
            if links(upper, at, layout, layout.neighbors)?.any(|other| levels[other] < level) {
                return Err("a link leads to a level that is not there");
            }
            at += size;
        }
        at += 4;
    }
    Ok(())
}

/// Returns the elements to which no path of links of the lowest level leads from the entry point.
///
/// # Errors
///
/// Returns what is wrong with a link.
pub fn unreached(data: &[u8], layout: &Layout) -> Result<Vec<usize>, &'static str> {
    let elements: Vec<_> = layout.elements_of(data).collect();
    if elements.is_empty() {
        return Ok(Vec::new());
    }
    let mut is_reached = vec![false; elements.len()];
    let mut to_follow = vec![layout.entry_point];
    *is_reached.get_mut(layout.entry_point).ok_or("it is entered at an element that is not there")? = true;
    while let Some(element) = to_follow.pop() {
        for linked in links(elements[element], 0, layout, 2 * layout.neighbors)? {
            if !std::mem::replace(&mut is_reached[linked], true) {
                to_follow.push(linked);
            }
        }
    }
    Ok((0..elements.len()).filter(|element| !is_reached[*element]).collect())
}

/// What `data_level0.bin` has of labels.
#[derive(Debug, Default)]
pub struct Labels {
    /// The element of each label, and whether it is marked as deleted.
    pub elements: HashMap<u64, (usize, bool)>,
    /// How many elements are not marked as deleted.
    pub unmarked: usize,
}

/// Returns the labels of all elements.
pub fn labels(data: &[u8], layout: &Layout) -> Labels {
    let mut labels = Labels::default();
    for (number, element) in layout.elements_of(data).enumerate() {
        let label = element.get(layout.label_offset..).and_then(|rest| rest.first_chunk());
        let is_deleted = element.get(FLAGS.0).is_some_and(|flags| flags & FLAGS.1 != 0);
        labels.unmarked += usize::from(!is_deleted);
        if let Some(label) = label {
            labels.elements.insert(u64::from_le_bytes(*label), (number, is_deleted));
        }
    }
    labels
}

/// Returns which parts of `length` bytes differ in two files, or are not in both; `starts` says where each begins in the one
/// and in the other.
pub fn differing(one: &[u8], other: &[u8], starts: &[(usize, usize)], length: usize) -> Vec<usize> {
    let differs = |(mine, theirs): (usize, usize)| match (part(one, mine, length), part(other, theirs, length)) {
        (Some(mine), Some(theirs)) => mine != theirs,
        _ => true,
    };
    (0..starts.len()).filter(|at| differs(starts[*at])).collect()
}

fn part(content: &[u8], start: usize, length: usize) -> Option<&[u8]> {
    content.get(start..start.checked_add(length)?)
}

/// The links of an element on one level, which begin at `start`. Each leads to an element that is there.
fn links<'a>(
    bytes: &'a [u8],
    start: usize,
    layout: &Layout,
    most: usize,
) -> Result<impl Iterator<Item = usize> + use<'a>, &'static str> {
    const NOWHERE: &str = "a link leads to an element that is not there";
    let rest = bytes.get(start..).ok_or(NOWHERE)?;
    let count = usize::from(u16::from_le_bytes(*rest.first_chunk().ok_or(NOWHERE)?));
    if count > most {
        return Err(NOWHERE);
    }
    let links = rest.get(LINKS..LINKS + 4 * count).ok_or(NOWHERE)?;
    let links = links.chunks_exact(4).map(|link| u32::from_le_bytes(link.try_into().expect("four bytes")) as usize);
    if links.clone().any(|link| link >= layout.elements) {
        return Err(NOWHERE);
    }
    Ok(links)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEIGHBORS: usize = 2;
    const SIZE: usize = LINKS + 4 * 2 * NEIGHBORS + 8;

    /// An index without vectors: the links of its elements, whose label is ten times their number.
    fn index(links: &[&[u32]]) -> (Vec<u8>, Layout) {
        let mut data = Vec::new();
        for (number, links) in links.iter().enumerate() {
            let mut element = vec![u8::try_from(links.len()).unwrap(), 0, 0, 0];
            element.extend(links.iter().flat_map(|link| link.to_le_bytes()));
            element.resize(SIZE - 8, 0);
            element.extend((10 * number as u64).to_le_bytes());
            data.extend(element);
        }
        let layout = Layout {
            elements: links.len(),
            element_size: SIZE,
            label_offset: SIZE - 8,
            max_level: 0,
            entry_point: 0,
            neighbors: NEIGHBORS,
        };
        (data, layout)
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let (data, layout) = index(&[&[1, 2], &[0], &[]]);
        assert_eq!(check_links(&data, &layout), Ok(()));
        let (data, layout) = index(&[&[1, 3], &[0], &[]]);
        assert!(check_links(&data, &layout).is_err());
        let (mut data, layout) = index(&[&[1], &[0]]);
        data[SIZE] = 200;
        assert!(check_links(&data, &layout).is_err(), "more links than there is room for");
    }

    #[test]
    fn elements_that_no_link_leads_to_are_unreached() {
        let (data, mut layout) = index(&[&[1], &[0], &[1], &[2]]);
        assert_eq!(unreached(&data, &layout), Ok(vec![2, 3]));
        layout.entry_point = 3;
        assert_eq!(unreached(&data, &layout), Ok(Vec::new()));
        layout.entry_point = 4;
        assert!(unreached(&data, &layout).is_err());
    }

    #[test]
    fn labels_are_found_with_what_is_marked_as_deleted() {
        let (mut data, layout) = index(&[&[1], &[0], &[1]]);
        data[SIZE + FLAGS.0] = FLAGS.1;
        let labels = labels(&data, &layout);
        assert_eq!(labels.unmarked, 2);
        assert_eq!(labels.elements[&20], (2, false));
        assert_eq!(labels.elements[&10], (1, true));
    }

    /// Levels above the lowest: of each element, the links of each of its levels.
    fn upper(levels: &[&[&[u32]]]) -> Vec<u8> {
        let size = LINKS + 4 * NEIGHBORS;
        let mut bytes = Vec::new();
        for own in levels {
            bytes.extend(u32::try_from(own.len() * size).unwrap().to_le_bytes());
            for links in *own {
                let mut level = vec![u8::try_from(links.len()).unwrap(), 0, 0, 0];
                level.extend(links.iter().flat_map(|link| link.to_le_bytes()));
                level.resize(size, 0);
                bytes.extend(level);
            }
        }
        bytes
    }

    #[test]
    fn a_link_to_a_level_that_an_element_does_not_have_is_found() {
        let (_, layout) = index(&[&[], &[], &[]]);
        let layout = Layout { max_level: 1, entry_point: 1, ..layout };
        let sound = upper(&[&[], &[&[2]], &[&[1]]]);
        assert_eq!(check_levels(&sound, &layout), Ok(()));
        assert!(
            check_levels(&upper(&[&[], &[&[0]], &[&[1]]]), &layout).is_err(),
            "the first has the lowest level only"
        );
        assert!(check_levels(&upper(&[&[], &[&[7]], &[&[1]]]), &layout).is_err());
        assert!(check_levels(&sound, &Layout { entry_point: 0, ..layout.clone() }).is_err());
        assert!(check_levels(&sound, &Layout { max_level: 2, ..layout.clone() }).is_err());
        assert!(check_levels(&sound[..sound.len() - 1], &layout).is_err());
        assert!(check_levels(&[&sound[..], &[0]].concat(), &layout).is_err());
    }

    #[test]
    fn parts_differ_where_a_byte_does_or_one_is_not_there() {
        let (one, other) = ([1, 2, 3, 4], [3, 4, 1, 0]);
        assert_eq!(differing(&one, &other, &[(0, 2), (2, 0), (3, 1), (0, 3)], 2), [0, 2, 3]);
        assert_eq!(differing(&one, &other, &[(usize::MAX, 0)], 2), [0]);
    }

    #[test]
    fn an_index_without_elements_is_sound() {
        let (data, layout) = index(&[]);
        let layout = Layout { max_level: -1, entry_point: usize::MAX, ..layout };
        assert_eq!(check_links(&data, &layout), Ok(()));
        assert_eq!(check_levels(&[], &layout), Ok(()));
        assert_eq!(unreached(&data, &layout), Ok(Vec::new()));
        assert_eq!(labels(&data, &layout).unmarked, 0);
    }

    #[test]
    fn a_file_that_is_too_short_has_no_elements() {
        let (data, layout) = index(&[&[1], &[0]]);
        let short = &data[..data.len() - 1];
        assert_eq!(check_links(short, &layout), Ok(()));
        assert_eq!(unreached(short, &layout), Ok(Vec::new()));
        assert!(labels(short, &layout).elements.is_empty());
        assert!(labels(&data, &Layout { elements: usize::MAX, ..layout }).elements.is_empty());
    }
}
