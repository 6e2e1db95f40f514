(** Linearizability as Herlihy and Wing define it ("Linearizability: A Correctness Condition for Concurrent Objects",
    1990): there is an order of the calls that respects real time and in which each answer is that of the memory. Calls
    without an answer may have taken effect or not. *)

From Coq Require Import Arith List Permutation Lia.
Import ListNotations.
From Shift Require Import Memory Trace.

(** [caller]: the sender's request of that number, or another requester. Times are places in the run. *)
Record call := Call { caller : option nat; what : op; invoked : nat; returned : option (nat * result) }.

Definition pending (c : call) : Prop := returned c = None.

Definition precedes (c d : call) : Prop :=
  match returned c with Some (time, _) => time < invoked d | None => False end.

Fixpoint ordered (order : list call) : Prop :=
  match order with
  | [] => True
  | c :: later => Forall (fun d => ~ precedes d c) later /\ ordered later
  end.

Fixpoint legal (m : memory) (order : list call) : Prop :=
  match order with
  | [] => True
  | c :: later =>
      match returned c with Some (_, r) => r = answer m (what c) | None => True end /\ legal (after m (what c)) later
  end.

Definition linearizable (m : memory) (calls : list call) : Prop :=
  exists order dropped,
    Permutation (order ++ dropped) calls /\ Forall pending dropped /\ ordered order /\ legal m order.

(** The calls of a run: the sender's from post to completion, another requester's at an instant. *)
Definition respond (i time : nat) (r : result) (c : call) : call :=
  match caller c with
  | Some j => if j =? i then Call (caller c) (what c) (invoked c) (Some (time, r)) else c
  | None => c
  end.

Fixpoint history (t : trace) : list call :=
  match t with
  | [] => []
  | Send i o :: t => Call (Some i) o (length t) None :: history t
  | Completion i r :: t => map (respond i (length t) r) (history t)
  | Foreign o r :: t => Call None o (length t) (Some (length t, r)) :: history t
  | _ :: t => history t
  end.

(** * What every linearization has in common *)

Lemma nothing_complete_is_dropped (c : call) dropped : Forall pending dropped -> In c dropped -> pending c.
Proof. intros F. rewrite Forall_forall in F. apply F. Qed.

Lemma complete_is_ordered order dropped calls c :
  Permutation (order ++ dropped) calls -> Forall pending dropped -> In c calls -> ~ pending c -> In c order.
Proof.
  intros P F I N. apply (Permutation_in _ (Permutation_sym P)) in I.
  apply in_app_or in I as [I|I]; [exact I|]. destruct N. now apply (nothing_complete_is_dropped c dropped).
Qed.

Lemma ordered_split first c later : ordered (first ++ c :: later) -> forall d, In d later -> ~ precedes d c.
Proof.
  induction first as [|b first IH]; simpl; intros [F O]; [|now apply IH].
  intros d I. rewrite Forall_forall in F. now apply F.
Qed.

(** A call behind which, in real time, all others lie is the last. *)
Lemma the_last_is_last order dropped calls c :
  Permutation (order ++ dropped) (c :: calls) -> Forall pending dropped -> ordered order -> ~ pending c ->
  Forall (fun d => precedes d c) calls ->
  exists first, order = first ++ [c] /\ Permutation (first ++ dropped) calls.
Proof.
  intros P F O N L.
  assert (I : In c order) by (eapply complete_is_ordered; [exact P | exact F | now left | exact N]).
  apply in_split in I as (first & later & ->).
  assert (Q : Permutation (first ++ later ++ dropped) calls).
  { apply (Permutation_cons_inv (a := c)). rewrite <- P, <- app_assoc. simpl. now rewrite Permutation_middle. }
  destruct later as [|d later].
  - exists first. now split.
  - exfalso. apply (ordered_split _ _ _ O d (or_introl eq_refl)).
    rewrite Forall_forall in L. apply L. apply (Permutation_in _ Q).
    apply in_or_app. right. now left.
Qed.

Lemma all_of_two (c d : call) order dropped :
  Permutation (order ++ dropped) [c; d] -> Forall pending dropped -> ~ pending c -> ~ pending d ->
  order = [c; d] \/ order = [d; c].
Proof.
  intros P F C D.
  assert (E : dropped = []).
  { destruct dropped as [|x dropped]; [reflexivity|]. exfalso. inversion F; subst.
    assert (I : In x [c; d]) by (apply (Permutation_in _ P), in_or_app; right; now left).
    destruct I as [<-|[<-|[]]]; auto. }
  subst. rewrite app_nil_r in P. apply Permutation_sym, Permutation_length_2_inv in P. tauto.
Qed.

Lemma all_of_one (c : call) order dropped :
  Permutation (order ++ dropped) [c] -> order = [] /\ dropped = [c] \/ order = [c] /\ dropped = [].
Proof.
  intro P. apply Permutation_sym, Permutation_length_1_inv in P.
  destruct order as [|x [|y order]]; simpl in P; [left | right | discriminate]; auto.
  injection P as -> ->. auto.
Qed.
