(** The definitions of Evidence.v and Walk.v that stand for src/proto/ledger answer as that code does: for all findings of up to
    three incarnations (States.v), for all queues of three requests of ten kinds (Plans.v). Of the decision table nothing is
    to be shown here: Decision.v uses Table.v itself. *)

From Coq Require Import Bool List.
Import ListNotations.
From Shift Require Import Terms Evidence Table Decision Walk States Plans.

Definition all_findings : list finding :=
  [FoundExecuted; FoundPartial 1; FoundUntouched; FoundBehind; FoundIncomplete; FoundNothing].

Fixpoint lists (n : nat) : list (list finding) :=
  match n with
  | 0 => [[]]
  | S n => flat_map (fun l => map (fun f => l ++ [f]) all_findings) (lists n)
  end.

(** What becomes of a READ without a result, never posted, in front of a fenced request of which that is found. *)
Definition fate_of_read (o : opcode) (fs : list finding) : verdict :=
  decide Read NotExecuted (Evidence.begun fs) PolicyReplay false (possibly_begun o fs).

Theorem the_states_are_those_that_are_compiled :
  map (fun fs => (fs, state_of fs, fate_of_read Send fs, fate_of_read WriteImm fs)) (lists 0 ++ lists 1 ++ lists 2 ++ lists 3)
  = states.
Proof. vm_compute. reflexivity. Qed.

(** * The walk *)

Definition entry_of (o : opcode) (fence : bool) (f : finding) : entry :=
  Entry (Request o PolicyReplay 3) fence [Posting 0 0 false false false f].

Definition kinds : list entry := [
  entry_of Send false FoundExecuted; entry_of Send false FoundUntouched; entry_of Send false FoundNothing;
  entry_of Write false (FoundPartial 1); entry_of Write false FoundNothing;
  entry_of Read false FoundNothing; entry_of Read true FoundNothing; entry_of FetchAdd false FoundExecuted;
  entry_of WriteImm true (FoundPartial 1); entry_of Write true FoundNothing
].

Definition number_off : list (nat * entry) := combine (seq 0 (length kinds)) kinds.

Definition queues : list (list (nat * entry)) :=
  flat_map (fun a => flat_map (fun b => map (fun c => [a; b; c]) number_off) number_off) number_off.

Definition action (ev : entry * verdict) : option nat :=
  match snd ev with
  | Replay => Some 0
  | ReplayFromProven => Some (proven_offset (postings (fst ev)))
  | Complete | Error _ => None
  end.

Theorem the_plans_are_those_that_are_compiled :
  map (fun q => let es := map snd q in (map fst q, map action (steps None es), stop None es)) queues = plans.
Proof. vm_compute. reflexivity. Qed.
