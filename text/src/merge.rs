//! The merge loop shared by byte-level BPE and SentencePiece BPE: the pair of neighbours with the
//! lowest rank is joined, the leftmost on a tie, until no pair can be joined.
//! Short words are scanned (no queue, everything in two cache lines), long ones use a heap, so the
//! time is O(n log n) for any input. Both give the same symbols; a test compares them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Decides whether two neighbours join. `start`..`end` is what both cover together.
pub trait Joiner {
    /// (rank, product) of the pair, lower ranks first; None if the pair never joins.
    fn join(&self, left: u32, right: u32, start: u32, end: u32) -> Option<(u32, u32)>;
}

const NONE: u32 = u32::MAX;
/// Longest word, in symbols, that is merged by scanning.
const SCAN_MAX: usize = 32;

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    start: u32,
    prev: u32,
    next: u32,
    /// Rank and product of the pair (this, next); rank NONE if it does not join.
    rank: u32,
    product: u32,
}

/// Reused from word to word; grows to the longest word seen.
#[derive(Default)]
pub struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<u64>>,
}

impl Merger {
    pub fn clear(&mut self) {
        self.symbols.clear();
    }

    /// Appends a symbol that begins at byte `start`; symbols are given from left to right.
    #[inline]
    pub fn push(&mut self, id: u32, start: u32) {
        let index = self.symbols.len() as u32;
        self.symbols.push(Symbol {
            id,
            start,
            prev: index.wrapping_sub(1),
            next: index + 1,
            rank: NONE,
            product: NONE,
        });
    }

    /// Merges the pushed symbols, the last of which ends at byte `end`, and hands each result as
    /// (id, start, end) to `emit`.
    pub fn run<J: Joiner>(&mut self, joiner: &J, end: u32, emit: impl FnMut(u32, u32, u32)) {
        self.run_with(joiner, end, SCAN_MAX, emit);
    }

    fn run_with<J: Joiner>(
        &mut self,
        joiner: &J,
        end: u32,
        scan_max: usize,
        mut emit: impl FnMut(u32, u32, u32),
    ) {
        if self.symbols.len() <= scan_max {
            self.scan(joiner, end);
            for i in 0..self.symbols.len() {
                let stop = self.symbols.get(i + 1).map_or(end, |next| next.start);
                emit(self.symbols[i].id, self.symbols[i].start, stop);
            }
            return;
        }
        let last = self.symbols.len() - 1;
        self.symbols[last].next = NONE;
        self.queue(joiner, end);
        let mut at = 0;
        while at != NONE {
            let symbol = self.symbols[at as usize];
            emit(symbol.id, symbol.start, self.end_of(symbol.next, end));
            at = symbol.next;
        }
    }

    fn scan<J: Joiner>(&mut self, joiner: &J, end: u32) {
        for i in 0..self.symbols.len().saturating_sub(1) {
            self.rank_dense(joiner, i, end);
        }
        loop {
            let mut best = NONE;
            let mut at = 0;
            for (i, symbol) in self.symbols.iter().enumerate() {
                if symbol.rank < best {
                    best = symbol.rank;
                    at = i;
                }
            }
            if best == NONE {
                return;
            }
            self.symbols[at].id = self.symbols[at].product;
            self.symbols.remove(at + 1);
            self.rank_dense(joiner, at, end);
            if at > 0 {
                self.rank_dense(joiner, at - 1, end);
            }
        }
    }

    /// Rank of the pair (i, i + 1) while the vector itself is the chain.
    #[inline]
    fn rank_dense<J: Joiner>(&mut self, joiner: &J, i: usize, end: u32) {
        let joined = self.symbols.get(i + 1).and_then(|right| {
            let stop = self.symbols.get(i + 2).map_or(end, |next| next.start);
            let left = &self.symbols[i];
            joiner.join(left.id, right.id, left.start, stop)
        });
        let (rank, product) = joined.unwrap_or((NONE, NONE));
        self.symbols[i].rank = rank;
        self.symbols[i].product = product;
    }

    fn queue<J: Joiner>(&mut self, joiner: &J, end: u32) {
        let mut heap = std::mem::take(&mut self.heap).into_vec();
        heap.clear();
        for i in 0..self.symbols.len() as u32 - 1 {
            if self.rank_linked(joiner, i, end) != NONE {
                heap.push(self.entry(i));
            }
        }
        let mut heap = BinaryHeap::from(heap);
        while let Some(Reverse(entry)) = heap.pop() {
            let (rank, at) = ((entry >> 32) as u32, entry as u32);
            // A stale entry names a symbol that was swallowed or whose pair has changed.
            if rank == NONE || self.symbols[at as usize].rank != rank {
                continue;
            }
            let right = self.symbols[at as usize].next;
            let after = self.symbols[right as usize].next;
            self.symbols[right as usize].rank = NONE;
            let symbol = &mut self.symbols[at as usize];
            symbol.id = symbol.product;
            symbol.next = after;
            let before = symbol.prev;
            if after != NONE {
                self.symbols[after as usize].prev = at;
            }
            if self.rank_linked(joiner, at, end) != NONE {
                heap.push(self.entry(at));
            }
            if before != NONE && self.rank_linked(joiner, before, end) != NONE {
                heap.push(self.entry(before));
            }
        }
        self.heap = heap;
    }

    fn entry(&self, at: u32) -> Reverse<u64> {
        Reverse(u64::from(self.symbols[at as usize].rank) << 32 | u64::from(at))
    }

    fn end_of(&self, next: u32, end: u32) -> u32 {
        if next == NONE { end } else { self.symbols[next as usize].start }
    }

    fn rank_linked<J: Joiner>(&mut self, joiner: &J, at: u32, end: u32) -> u32 {
        let left = self.symbols[at as usize];
        let joined = if left.next == NONE {
            None
        } else {
            let right = self.symbols[left.next as usize];
            joiner.join(left.id, right.id, left.start, self.end_of(right.next, end))
        };
        let (rank, product) = joined.unwrap_or((NONE, NONE));
        let symbol = &mut self.symbols[at as usize];
        symbol.rank = rank;
        symbol.product = product;
        rank
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    struct Table(HashMap<(u32, u32), (u32, u32)>);
    impl Joiner for Table {
        fn join(&self, left: u32, right: u32, _: u32, _: u32) -> Option<(u32, u32)> {
            self.0.get(&(left, right)).copied()
        }
    }

    fn merge(table: &Table, ids: &[u32], scan_max: usize) -> Vec<(u32, u32, u32)> {
        let mut merger = Merger::default();
        let mut out = Vec::new();
        for (i, &id) in ids.iter().enumerate() {
            merger.push(id, i as u32);
        }
        merger.run_with(table, ids.len() as u32, scan_max, |id, s, e| out.push((id, s, e)));
        out
    }

    #[test]
    fn scan_and_queue_agree_on_random_tables() {
        let mut seed = 12345u64;
        let mut next = move |n: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % n
        };
        for _ in 0..2000 {
            let mut table = HashMap::new();
            for _ in 0..next(30) {
                // Equal ranks on purpose: ties must go to the leftmost pair in both engines.
                table.insert((next(8) as u32, next(8) as u32), (next(5) as u32, next(8) as u32));
            }
            let ids: Vec<u32> = (0..2 + next(40)).map(|_| next(4) as u32).collect();
            let table = Table(table);
            assert_eq!(merge(&table, &ids, 1000), merge(&table, &ids, 0), "{ids:?}");
        }
    }

    #[test]
    fn long_run_of_one_symbol_is_merged_in_pairs() {
        let table = Table(HashMap::from([((0, 0), (0, 1)), ((1, 1), (1, 2))]));
        let out = merge(&table, &vec![0; 1 << 18], SCAN_MAX);
        assert_eq!(out.len(), 1 << 16);
        assert!(out.iter().all(|&(id, s, e)| id == 2 && e - s == 4));
    }
}
