//! Which of several versions of some hashes is the signed one: the one that leads to a root that is known.
//!
//! Left out: where versions come from. Invariant: only what the check accepts is returned, so a wrong version costs time and no more.

use exchequer_tlog::{Frontier, Hash};

/// Combinations that are tried at most.
const MAX_TRIALS: usize = 4096;

/// A version of a tile's hashes; a hash that it does not know is `None`.
pub(super) type Version = Vec<Option<Hash>>;

/// The root over hashes that make up a complete subtree, or any row of leaves.
pub(super) fn root_over(hashes: &[Hash]) -> Hash {
    let mut tree = Frontier::new();
    for hash in hashes {
        tree.append(*hash);
    }
    tree.root()
}

/// Finds hashes for tiles of these widths that pass the check, of versions given for each: first whole versions, then mixed ones.
pub(super) fn search(
    widths: &[usize],
    versions: &[Vec<Version>],
    check: impl Fn(&[Vec<Hash>]) -> bool,
) -> Option<Vec<Vec<Hash>>> {
    let filled: Vec<Vec<Vec<Hash>>> = widths
        .iter()
        .zip(versions)
        .map(|(width, versions)| {
            (0..versions.len()).filter_map(|first| fill(*width, versions, first)).collect()
        })
        .collect();
    let counts: Vec<usize> = filled.iter().map(Vec::len).collect();
    let whole = combinations(&counts).find_map(|choice| {
        let tiles: Vec<Vec<Hash>> =
            filled.iter().zip(&choice).map(|(filled, version)| filled[*version].clone()).collect();
        check(&tiles).then_some(tiles)
    });
    if whole.is_some() {
        return whole;
    }
    // Places at which the versions disagree.
    let mut open: Vec<(usize, usize, Vec<Hash>)> = Vec::new();
    for (tile, (width, versions)) in widths.iter().zip(versions).enumerate() {
        for place in 0..*width {
            let mut options: Vec<Hash> = Vec::new();
            for hash in versions.iter().filter_map(|version| *version.get(place)?) {
                if !options.contains(&hash) {
                    options.push(hash);
                }
            }
            if options.len() > 1 {
                open.push((tile, place, options));
            }
        }
    }
    let counts: Vec<usize> = open.iter().map(|(.., options)| options.len()).collect();
    let trials = counts.iter().try_fold(1usize, |product, count| product.checked_mul(*count));
    if trials.is_none_or(|trials| trials > MAX_TRIALS) {
        return None;
    }
    let mut tiles: Vec<Vec<Hash>> =
        filled.into_iter().map(|filled| filled.into_iter().next()).collect::<Option<_>>()?;
    combinations(&counts).find_map(|choice| {
        for ((tile, place, options), option) in open.iter().zip(&choice) {
            tiles[*tile][*place] = options[*option];
        }
        check(&tiles).then(|| tiles.clone())
    })
}

/// One version, with what it lacks taken from the others.
fn fill(width: usize, versions: &[Version], first: usize) -> Option<Vec<Hash>> {
    let at = |place: usize| {
        let own = versions[first].get(place).copied().flatten();
        own.or_else(|| versions.iter().find_map(|version| version.get(place).copied().flatten()))
    };
    (0..width).map(at).collect()
}

/// Every choice of one of so many, the first of each first; none if there are none of one, and at most [`MAX_TRIALS`].
fn combinations(counts: &[usize]) -> impl Iterator<Item = Vec<usize>> {
    let mut next = counts.iter().all(|count| *count > 0).then(|| vec![0; counts.len()]);
    std::iter::from_fn(move || {
        let current = next.take()?;
        let mut following = current.clone();
        for (place, count) in counts.iter().enumerate() {
            following[place] += 1;
            if following[place] < *count {
                next = Some(following);
                break;
            }
            following[place] = 0;
        }
        Some(current)
    })
    .take(MAX_TRIALS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bytes: &[u8]) -> Version {
        bytes.iter().map(|byte| (*byte > 0).then_some(Hash([*byte; 32]))).collect()
    }

    #[track_caller]
    fn check(versions: &[&[u8]], expected: &[u8]) {
        let expected: Vec<Hash> = row(expected).into_iter().flatten().collect();
        let root = root_over(&expected);
        let versions: Vec<Version> = versions.iter().map(|bytes| row(bytes)).collect();
        let found = search(&[expected.len()], &[versions], |tiles| root_over(&tiles[0]) == root);
        assert_eq!(found, Some(vec![expected]));
    }

    #[test]
    fn the_version_that_leads_to_the_root_is_found_even_if_none_is_right_as_a_whole() {
        check(&[&[1, 2, 3, 4]], &[1, 2, 3, 4]);
        check(&[&[1, 9, 3, 4], &[1, 2, 3, 4]], &[1, 2, 3, 4]);
        check(&[&[0, 2, 3], &[1, 0, 0]], &[1, 2, 3]);
        check(&[&[1, 9, 3, 4], &[8, 2, 3, 4], &[0, 0, 3, 4]], &[1, 2, 3, 4]);
    }

    #[test]
    fn what_leads_nowhere_is_not_found() {
        let versions = [vec![row(&[1, 2]), row(&[3, 4])]];
        assert_eq!(search(&[2], &versions, |_| false), None);
        assert_eq!(search(&[2], &[vec![]], |_| true), None);
        assert_eq!(search(&[2], &[vec![row(&[1])]], |_| true), None);
    }
}
