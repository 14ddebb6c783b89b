//! I-12: what the balloon or a reserve holds is in no other hands.

hidden! {
    use balloon::{Balloon, BalloonError, EmptyPfn, Reserve};
    use hypercall::{Frame, Frames, Pfn, Refused};
    use p2m::P2m;

    fn an_empty_pfn_is_not_made_of_a_frame(frame: Frame) -> EmptyPfn {
        EmptyPfn(frame) //~ E0423
    }

    fn an_empty_pfn_is_no_frame(empty: EmptyPfn) -> Frame {
        empty.0 //~ E0616
    }

    fn an_empty_pfn_is_not_copied(empty: EmptyPfn) -> [EmptyPfn; 2] {
        [empty.clone(), empty] //~ E0599
    }

    fn what_the_balloon_takes_over_is_in_no_other_hands(
        balloon: &mut Balloon<'_>,
        p2m: &P2m<'_>,
        frames: Frames,
    ) -> Result<Frames, Refused<Frames, BalloonError>> {
        balloon.add_empty(p2m, frames)?;
        Ok(frames) //~ E0382
    }

    fn nobody_says_what_the_balloon_holds(balloon: &mut Balloon<'_>) {
        balloon.held.insert(Pfn::new(1)); //~ E0616
    }

    fn nobody_says_what_a_reserve_holds(reserve: &mut Reserve<'_>) {
        reserve.free.insert(Pfn::new(1)); //~ E0616
    }
}
