//! I-1, I-16: a token stands for frames that nobody else uses, and what is uncertain has none.
#![expect(dead_code, reason = "what the compiler refuses is not run")]

use hypercall::{Frame, Frames, Pfn, Uncertain};

fn a_frame_is_claimed_by_unsafe_code_alone() -> Frame {
    owed!(Frame::claim(Pfn::new(1))) //~ E0133
}

fn a_run_is_claimed_by_unsafe_code_alone() -> Frames {
    owed!(Frames::claim(Pfn::new(1), 2)) //~ E0133
}

fn uncertain_frames_come_back_by_unsafe_code_alone(uncertain: Uncertain) -> Frames {
    owed!(uncertain.vouch()) //~ E0133
}

hidden! {
    use hypercall::Quarantine;

    fn a_frame_is_not_made_of_a_number() -> Frame {
        Frame(Pfn::new(1)) //~ E0423
    }

    fn a_run_does_not_grow(frames: &mut Frames) {
        frames.count += 1; //~ E0616
    }

    fn uncertain_frames_are_no_others(uncertain: &mut Uncertain) {
        uncertain.start = Pfn::new(1); //~ E0616
    }

    fn a_frame_is_not_copied(frame: Frame) -> [Frame; 2] {
        [frame.clone(), frame] //~ E0599
    }

    fn a_run_is_not_copied(frames: Frames) -> [Frames; 2] {
        [frames.clone(), frames] //~ E0599
    }

    fn uncertain_frames_are_not_copied(uncertain: Uncertain) -> [Uncertain; 2] {
        [uncertain.clone(), uncertain] //~ E0599
    }

    fn a_token_that_was_given_is_gone(frame: Frame) -> [Frame; 2] {
        [frame, frame] //~ E0382
    }

    fn a_quarantine_hands_nothing_out(quarantine: &Quarantine<'_>) -> Option<Uncertain> {
        quarantine.iter().next() //~ E0308
    }

    fn a_quarantine_keeps_its_places(quarantine: &mut Quarantine<'_>) -> Option<Uncertain> {
        quarantine.places[0].take() //~ E0616
    }
}
