//! Bounded views of the lists that an application hands to `post_send` and `post_recv`.
//!
//! A list comes from C: it may be longer than any queue, run in a circle, or carry a negative element count. Making a
//! view is `unsafe`, because only the caller knows that the memory may be read; walking it is not: no more elements
//! than the bound are visited, each is copied out, and nothing here writes or keeps a reference into C's memory.

use crate::constants::ibv_wr_opcode;
use crate::work::{ibv_recv_wr, ibv_send_wr, ibv_sge, ibv_wr_atomic, ibv_wr_rdma};
use core::marker::PhantomData;
use core::ptr::NonNull;

/// The most scatter/gather elements of one work request that a view visits. No device offers more than a few dozen;
/// rxe offers 32, mlx5 at most 511 (16 bytes each in a WQE of 8 KiB).
pub const MAX_SGE: usize = 512;

/// The send work requests of one `post_send` call, in order.
#[derive(Clone, Copy, Debug)]
pub struct SendChain<'a> {
    next: *mut ibv_send_wr,
    left: usize,
    life: PhantomData<&'a ibv_send_wr>,
}

impl<'a> SendChain<'a> {
    /// A view of the list that begins at `head` (NULL is the empty list), ending after `bound` elements at the latest.
    ///
    /// # Safety
    ///
    /// For `'a`, each of the first `bound` elements of the list is a readable, aligned `ibv_send_wr` which nobody
    /// writes, its `sg_list` is readable for `num_sge` elements, and its `next` is NULL or such an element. The verbs
    /// contract gives a `post_send` exactly that, from its entry to its return, for the list that it is passed.
    #[must_use]
    pub const unsafe fn new(head: *mut ibv_send_wr, bound: usize) -> Self {
        Self { next: head, left: bound, life: PhantomData }
    }

    /// The element that comes next, or `None` at the end of the list. After the iterator has returned `None`, a value
    /// here means that the list goes on behind the bound.
    #[must_use]
    pub const fn rest(&self) -> Option<NonNull<ibv_send_wr>> {
        NonNull::new(self.next)
    }
}

impl<'a> Iterator for SendChain<'a> {
    type Item = SendWr<'a>;

    fn next(&mut self) -> Option<SendWr<'a>> {
        let at = NonNull::new(self.next)?;
        self.left = self.left.checked_sub(1)?;
        // SAFETY: `at` is within the first `bound` elements of the list, which whoever made this view promised to be
        // readable and unwritten for 'a.
        let wr = unsafe { at.read() };
        self.next = wr.next;
        Some(SendWr { at, wr, life: PhantomData })
    }
}

/// One send work request, copied out of the list.
#[derive(Clone, Copy, Debug)]
pub struct SendWr<'a> {
    at: NonNull<ibv_send_wr>,
    wr: ibv_send_wr,
    life: PhantomData<&'a ibv_send_wr>,
}

impl<'a> SendWr<'a> {
    /// Where it lies in the application's memory: what `bad_wr` is set to if this one is refused.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut ibv_send_wr {
        self.at.as_ptr()
    }

    /// The work request itself, copied.
    #[must_use]
    pub const fn raw(&self) -> &ibv_send_wr {
        &self.wr
    }

    /// The application's name for it.
    #[must_use]
    pub const fn wr_id(&self) -> u64 {
        self.wr.wr_id
    }

    /// What it asks for.
    #[must_use]
    pub const fn opcode(&self) -> ibv_wr_opcode {
        self.wr.opcode
    }

    /// `IBV_SEND_*`.
    #[must_use]
    pub const fn send_flags(&self) -> u32 {
        self.wr.send_flags
    }

    /// Its pieces of local memory, in order.
    #[must_use]
    pub fn sges(&self) -> SgeList<'a> {
        SgeList::bounded(self.wr.sg_list, self.wr.num_sge)
    }

    /// Immediate data in network byte order, or the key to invalidate, as the opcode says.
    #[must_use]
    pub const fn imm(&self) -> u32 {
        self.wr.imm.raw()
    }

    /// The remote side of a WRITE or READ; of another opcode, whatever lies there.
    #[must_use]
    pub const fn rdma(&self) -> ibv_wr_rdma {
        // SAFETY: every member of the union is plain integers and pointers, any bytes are a value of it, and the
        // application (or its memset) wrote the fields that the opcode names; the rest of the copy is its stack's.
        unsafe { self.wr.wr.rdma }
    }

    /// The remote side of an atomic; of another opcode, whatever lies there.
    #[must_use]
    pub const fn atomic(&self) -> ibv_wr_atomic {
        // SAFETY: as in `rdma`.
        unsafe { self.wr.wr.atomic }
    }
}

/// The receive work requests of one `post_recv` call, in order.
#[derive(Clone, Copy, Debug)]
pub struct RecvChain<'a> {
    next: *mut ibv_recv_wr,
    left: usize,
    life: PhantomData<&'a ibv_recv_wr>,
}

impl<'a> RecvChain<'a> {
    /// A view of the list that begins at `head` (NULL is the empty list), ending after `bound` elements at the latest.
    ///
    /// # Safety
    ///
    /// As for [`SendChain::new`], of `ibv_recv_wr`.
    #[must_use]
    pub const unsafe fn new(head: *mut ibv_recv_wr, bound: usize) -> Self {
        Self { next: head, left: bound, life: PhantomData }
    }

    /// The element that comes next, as [`SendChain::rest`].
    #[must_use]
    pub const fn rest(&self) -> Option<NonNull<ibv_recv_wr>> {
        NonNull::new(self.next)
    }
}

impl<'a> Iterator for RecvChain<'a> {
    type Item = RecvWr<'a>;

    fn next(&mut self) -> Option<RecvWr<'a>> {
        let at = NonNull::new(self.next)?;
        self.left = self.left.checked_sub(1)?;
        // SAFETY: `at` is within the first `bound` elements of the list, which whoever made this view promised to be
        // readable and unwritten for 'a.
        let wr = unsafe { at.read() };
        self.next = wr.next;
        Some(RecvWr { at, wr, life: PhantomData })
    }
}

/// One receive work request, copied out of the list.
#[derive(Clone, Copy, Debug)]
pub struct RecvWr<'a> {
    at: NonNull<ibv_recv_wr>,
    wr: ibv_recv_wr,
    life: PhantomData<&'a ibv_recv_wr>,
}

impl<'a> RecvWr<'a> {
    /// Where it lies in the application's memory.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut ibv_recv_wr {
        self.at.as_ptr()
    }

    /// The work request itself, copied.
    #[must_use]
    pub const fn raw(&self) -> &ibv_recv_wr {
        &self.wr
    }

    /// The application's name for it.
    #[must_use]
    pub const fn wr_id(&self) -> u64 {
        self.wr.wr_id
    }

    /// Its pieces of local memory, in order.
    #[must_use]
    pub fn sges(&self) -> SgeList<'a> {
        SgeList::bounded(self.wr.sg_list, self.wr.num_sge)
    }
}

/// The scatter/gather elements of one work request, in order.
#[derive(Clone, Copy, Debug)]
pub struct SgeList<'a> {
    next: *const ibv_sge,
    left: usize,
    cut: bool,
    life: PhantomData<&'a ibv_sge>,
}

impl<'a> SgeList<'a> {
    /// A view of `num_sge` elements at `list`: none if the count is negative or the pointer NULL, [`MAX_SGE`] at most.
    ///
    /// # Safety
    ///
    /// For `'a`, the first `num_sge` elements at `list` are readable and nobody writes them.
    #[must_use]
    pub unsafe fn new(list: *const ibv_sge, num_sge: i32) -> Self {
        Self::bounded(list, num_sge)
    }

    fn bounded(list: *const ibv_sge, num_sge: i32) -> Self {
        let wanted = if list.is_null() { 0 } else { usize::try_from(num_sge).unwrap_or(0) };
        Self { next: list, left: wanted.min(MAX_SGE), cut: wanted > MAX_SGE, life: PhantomData }
    }

    /// Whether the work request has more elements than [`MAX_SGE`], which this view does not visit.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.cut
    }

    /// The bytes of all elements that are left; a sum of at most [`MAX_SGE`] 32-bit lengths fits.
    #[must_use]
    pub fn total_bytes(self) -> u64 {
        self.map(|sge| u64::from(sge.length)).sum()
    }
}

impl Iterator for SgeList<'_> {
    type Item = ibv_sge;

    fn next(&mut self) -> Option<ibv_sge> {
        self.left = self.left.checked_sub(1)?;
        // SAFETY: fewer than `num_sge` elements were visited, and whoever made the view (of this list, or of the chain
        // whose work request named it) promised that many to be readable and unwritten for 'a.
        let sge = unsafe { self.next.read() };
        self.next = self.next.wrapping_add(1);
        Some(sge)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for SgeList<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constants::{IBV_SEND_SIGNALED, IBV_WR_RDMA_WRITE, IBV_WR_SEND};
    use core::ptr::null_mut;

    fn sge(addr: u64, length: u32) -> ibv_sge {
        ibv_sge { addr, length, lkey: 7 }
    }

    fn list_of(count: u64) -> Vec<ibv_send_wr> {
        let mut wrs: Vec<ibv_send_wr> =
            (0..count).map(|wr_id| ibv_send_wr { wr_id, opcode: IBV_WR_SEND, ..ibv_send_wr::zeroed() }).collect();
        let base = wrs.as_mut_ptr();
        for (i, wr) in wrs.iter_mut().enumerate() {
            wr.next = if (i as u64) + 1 == count { null_mut() } else { base.wrapping_add(i + 1) };
        }
        wrs
    }

    #[test]
    fn a_chain_is_walked_in_order_to_its_end() {
        let mut wrs = list_of(5);
        // SAFETY: the list lives until the end of the test and nobody writes it.
        let mut chain = unsafe { SendChain::new(wrs.as_mut_ptr(), 16) };
        assert_eq!(chain.by_ref().map(|wr| wr.wr_id()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(chain.rest(), None);
    }

    #[test]
    fn a_circular_chain_ends_at_the_bound_and_says_that_it_went_on() {
        let mut wrs = list_of(3);
        let base = wrs.as_mut_ptr();
        wrs[2].next = base;
        // SAFETY: the list lives until the end of the test and nobody writes it.
        let mut chain = unsafe { SendChain::new(base, 7) };
        assert_eq!(chain.by_ref().count(), 7);
        assert_eq!(chain.rest(), NonNull::new(base.wrapping_add(1)));
    }

    #[test]
    fn an_empty_chain_has_nothing() {
        // SAFETY: NULL is the empty list.
        let mut chain = unsafe { SendChain::new(null_mut(), 4) };
        assert!(chain.next().is_none());
        // SAFETY: NULL is the empty list.
        let mut chain = unsafe { RecvChain::new(null_mut(), 4) };
        assert!(chain.next().is_none());
    }

    #[test]
    fn a_work_request_shows_what_was_posted() {
        let mut pieces = [sge(0x1000, 10), sge(0x2000, u32::MAX)];
        let mut wr = ibv_send_wr {
            wr_id: u64::MAX,
            opcode: IBV_WR_RDMA_WRITE,
            send_flags: IBV_SEND_SIGNALED,
            sg_list: pieces.as_mut_ptr(),
            num_sge: 2,
            ..ibv_send_wr::zeroed()
        };
        wr.wr.rdma = ibv_wr_rdma { remote_addr: 0xdead_beef_0000, rkey: 0x1234 };
        let at: *mut ibv_send_wr = &mut wr;
        // SAFETY: the work request and its elements live until the end of the test and nobody writes them.
        let view = unsafe { SendChain::new(at, 1) }.next().expect("one element");
        assert_eq!((view.as_ptr(), view.wr_id(), view.send_flags()), (at, u64::MAX, IBV_SEND_SIGNALED));
        assert_eq!(view.rdma(), ibv_wr_rdma { remote_addr: 0xdead_beef_0000, rkey: 0x1234 });
        assert_eq!(view.sges().collect::<Vec<_>>(), pieces);
        assert_eq!(view.sges().total_bytes(), 10 + u64::from(u32::MAX));
    }

    #[test]
    fn a_mad_element_count_reads_nothing_it_must_not() {
        // SAFETY: no element is visited in either case.
        assert_eq!(unsafe { SgeList::new([sge(0, 1)].as_ptr(), -1) }.count(), 0);
        // SAFETY: no element is visited in either case.
        assert_eq!(unsafe { SgeList::new(core::ptr::null(), 3) }.count(), 0);
        let many = vec![sge(0, 1); MAX_SGE + 1];
        // SAFETY: the vector holds that many elements.
        let list = unsafe { SgeList::new(many.as_ptr(), MAX_SGE as i32 + 1) };
        assert!(list.is_cut());
        assert_eq!(list.count(), MAX_SGE);
    }

    #[test]
    fn receives_are_walked_like_sends() {
        let mut pieces = [sge(0x1000, 10)];
        let mut last = ibv_recv_wr { wr_id: 2, ..ibv_recv_wr::zeroed() };
        let mut first = ibv_recv_wr { wr_id: 1, next: &mut last, sg_list: pieces.as_mut_ptr(), num_sge: 1 };
        // SAFETY: both live until the end of the test and nobody writes them.
        let seen: Vec<_> = unsafe { RecvChain::new(&mut first, 9) }.map(|wr| (wr.wr_id(), wr.sges().len())).collect();
        assert_eq!(seen, [(1, 1), (2, 0)]);
    }
}
