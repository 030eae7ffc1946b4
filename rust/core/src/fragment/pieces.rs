//! Which pieces of a datagram were seen.

/// Fragments of one datagram: 65 535 bytes over an MTU of 296.
const MOST_PIECES: usize = 256;

/// The bytes of a datagram that a fragment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset of its first byte.
    pub start: u32,
    /// Offset behind its last byte.
    pub end: u32,
    /// No fragment follows (MF is 0).
    pub last: bool,
}

/// Why a piece cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// It is there already: same offset, length and MF.
    Duplicate,
    /// With a known piece, or with the known end.
    Overlap,
    /// There are 256.
    TooMany,
}

/// Which pieces of a datagram were seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    /// Disjoint, sorted.
    pub(super) known: Vec<(u32, u32)>,
    /// Their sum.
    bytes: u32,
    end: Option<u32>,
}

impl Pieces {
    /// Whether a piece may be added.
    ///
    /// # Errors
    /// `Duplicate`, `Overlap`, `TooMany`.
    pub fn check(&self, piece: Piece) -> Result<(), Misfit> {
        let Piece { start, end, last } = piece;
        let at = self.known.partition_point(|&(from, _)| from < start);
        let same = self.known.get(at) == Some(&(start, end));
        if same && last == (self.end == Some(end)) {
            return Err(Misfit::Duplicate);
        }
        let before = at.checked_sub(1).and_then(|at| self.known.get(at));
        let overlaps = before.is_some_and(|&(_, to)| start < to)
            || self.known.get(at).is_some_and(|&(from, _)| from < end);
        let beyond_end = self
            .end
            .is_some_and(|known| end > known || (last && end != known));
        let data_beyond = last && self.known.last().is_some_and(|&(_, to)| to > end);
        if overlaps || beyond_end || data_beyond {
            return Err(Misfit::Overlap);
        }
        if self.known.len() >= MOST_PIECES {
            return Err(Misfit::TooMany);
        }
        Ok(())
    }

    /// Add a piece that was checked.
    pub(super) fn add(&mut self, piece: Piece) {
        let Piece { start, end, last } = piece;
        let at = self.known.partition_point(|&(from, _)| from < start);
        self.known.insert(at, (start, end));
        self.bytes += end - start;
        if last {
            self.end = Some(end);
        }
    }

    /// Whether every byte was seen.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.end == Some(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (start, end, last)
    type Row = (u32, u32, bool);

    fn piece((start, end, last): Row) -> Piece {
        Piece { start, end, last }
    }

    fn pieces(all: &[Row]) -> Result<Pieces, Misfit> {
        let mut pieces = Pieces::default();
        for &one in all {
            pieces.check(piece(one))?;
            pieces.add(piece(one));
        }
        Ok(pieces)
    }

    /// Rule 6, fragments: overlapping fragments, data beyond the end, and two ends are refused; an exact copy is told
    /// apart.
    #[test]
    fn pieces_table() {
        let complete = |all: &[Row]| pieces(all).map(|pieces| pieces.is_complete());
        let cases: &[(&[Row], Result<bool, Misfit>)] = &[
            (&[(0, 8, false), (8, 20, true)], Ok(true)),
            (&[(16, 20, true), (0, 8, false), (8, 16, false)], Ok(true)),
            (&[(0, 8, false), (16, 20, true)], Ok(false)),
            (&[(0, 8, false)], Ok(false)),
            (&[(0, 8, false), (0, 8, false)], Err(Misfit::Duplicate)),
            (&[(8, 16, true), (8, 16, true)], Err(Misfit::Duplicate)),
            (
                &[
                    (0, 8, false),
                    (8, 16, false),
                    (16, 20, true),
                    (8, 16, false),
                ],
                Err(Misfit::Duplicate),
            ),
            (&[(8, 16, false), (8, 16, true)], Err(Misfit::Overlap)),
            (&[(8, 16, true), (8, 16, false)], Err(Misfit::Overlap)),
            (
                &[(0, 8, false), (8, 16, false), (0, 16, false)],
                Err(Misfit::Overlap),
            ),
            (&[(0, 16, false), (0, 8, false)], Err(Misfit::Overlap)),
            (&[(0, 24, false), (16, 32, false)], Err(Misfit::Overlap)),
            (&[(8, 16, false), (0, 24, false)], Err(Misfit::Overlap)),
            (&[(8, 20, true), (24, 32, false)], Err(Misfit::Overlap)),
            (&[(8, 20, true), (20, 24, true)], Err(Misfit::Overlap)),
            (&[(24, 32, false), (8, 20, true)], Err(Misfit::Overlap)),
        ];
        for (all, expected) in cases {
            assert_eq!(complete(all), *expected, "{all:?}");
        }
    }

    #[test]
    fn pieces_more_than_256_are_too_many() {
        let all: Vec<_> = (0..256).map(|n| (n * 8, n * 8 + 8, false)).collect();
        let full = pieces(&all).unwrap();
        assert_eq!(full.check(piece((4096, 4104, false))), Err(Misfit::TooMany));
        assert_eq!(full.check(piece((8, 16, false))), Err(Misfit::Duplicate));
        assert_eq!(full.check(piece((8, 24, false))), Err(Misfit::Overlap));
    }
}
