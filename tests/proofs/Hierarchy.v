(** The consensus numbers themselves: registers 1, fetch-and-add 2, compare-and-swap any. "Consensus Hierarchy Barrier",
    "Background: Herlihy's Consensus Hierarchy", which only cites them. *)

From Coq Require Import Arith Bool List Lia.
Import ListNotations.
From Shift Require Import Memory Consensus.

(** * Pairs of operations *)

Lemma elsewhere_commute m o1 o2 :
  place o1 <> place o2 -> after (after m o1) o2 == after (after m o2) o1 /\ answer (after m o1) o2 = answer m o2.
Proof.
  intro N. split.
  - intro b. destruct (Nat.eq_dec b (place o1)) as [->|N1]; [|destruct (Nat.eq_dec b (place o2)) as [->|N2]].
    + rewrite (after_elsewhere _ o2), !after_here, (after_elsewhere _ o2) by assumption. reflexivity.
    + rewrite (after_elsewhere _ o1) by congruence. rewrite !after_here, (after_elsewhere _ o1) by congruence. reflexivity.
    + now rewrite !after_elsewhere.
  - unfold answer. now rewrite after_elsewhere by congruence.
Qed.

Lemma elsewhere_are_independent o1 o2 : place o1 <> place o2 -> independent o1 o2.
Proof.
  intros N m. destruct (elsewhere_commute m o1 o2 N) as [S R].
  destruct (elsewhere_commute m o2 o1 (not_eq_sym N)) as [_ R']. auto.
Qed.

Lemma read_changes_nothing m a : after m (Read a) == m.
Proof. apply (same_but_at a); intros; [now rewrite after_elsewhere | now rewrite after_at]. Qed.

Lemma a_read_is_hidden a o : hides (Read a) o.
Proof.
  intro m. split; [apply after_same | apply answer_same]; apply read_changes_nothing.
Qed.

Lemma a_write_hides o a v : place o = a -> hides o (Write a v).
Proof.
  intros E m. split; [|reflexivity]. apply (same_but_at a).
  - intros b N. rewrite !after_elsewhere; simpl; congruence.
  - now rewrite !after_at.
Qed.

Lemma registers_are_blind o1 o2 : registers o1 -> registers o2 -> blind_pair o1 o2.
Proof.
  intros R1 R2. destruct (Nat.eq_dec (place o1) (place o2)) as [E|N].
  - destruct o1 as [a|a v| |], R1; [left; apply a_read_is_hidden|].
    destruct o2 as [b|b w| |], R2.
    + right. left. apply a_read_is_hidden.
    + left. now apply a_write_hides.
  - right. right. now apply elsewhere_are_independent.
Qed.

Lemma additions_commute m a d e :
  after (after m (FetchAdd a d)) (FetchAdd a e) == after (after m (FetchAdd a e)) (FetchAdd a d).
Proof.
  apply (same_but_at a).
  - intros b N. now rewrite !after_elsewhere.
  - rewrite !after_at by reflexivity. simpl. lia.
Qed.

Lemma additions_interfere o1 o2 : fetch_add o1 -> fetch_add o2 -> interfering o1 o2.
Proof.
  intros F1 F2 m. destruct (Nat.eq_dec (place o1) (place o2)) as [E|N].
  2: { left. now apply elsewhere_commute. }
  destruct o1 as [a|a v|a d|]; [|right; right|..|destruct F1].
  - right. left. apply a_read_is_hidden.
  - destruct o2 as [b|b w|b e|]; [..|destruct F2]; apply a_write_hides; simpl in *; auto.
  - destruct o2 as [b|b w|b e|]; [..|destruct F2]; simpl in E; subst b.
    + right. right. apply a_read_is_hidden.
    + right. left. now apply a_write_hides.
    + left. apply additions_commute.
Qed.

(** * Exhausting the runs of finite programs *)

(** [P] holds of everything that is reached within [fuel] steps, and nothing lies beyond. *)
Fixpoint within (fuel : nat) (P : configuration -> Prop) (c : configuration) : Prop :=
  P c /\
  match fuel with
  | 0 => forall c', ~ step c c'
  | S fuel => forall c', step c c' -> within fuel P c'
  end.

Lemma within_reaches fuel P : forall c c', within fuel P c -> reaches c c' -> P c'.
Proof.
  induction fuel as [|fuel IH]; intros c c' [H N] R; destruct R as [|c' c'' S R]; auto.
  - destruct (N _ S).
  - apply (IH c'); auto.
Qed.

Lemma step_of_two m p0 p1 c :
  step (m, [p0; p1]) c ->
  (exists o next, p0 = Do o next /\ c = (after m o, [next (answer m o); p1])) \/
  (exists o next, p1 = Do o next /\ c = (after m o, [p0; next (answer m o)])).
Proof.
  intro S. remember (m, _) as c0 eqn:E. destruct S as [m' before o next later]. injection E as -> E.
  destruct before as [|x [|y [|z before]]]; simpl in *; inversion E; subst; eauto.
Qed.

Lemma step_of_one m p c : step (m, [p]) c -> exists o next, p = Do o next.
Proof.
  intro S. remember (m, _) as c0 eqn:E. destruct S as [m' before o next later]. injection E as -> E.
  destruct before as [|x [|]]; simpl in *; inversion E; subst; eauto.
Qed.

(** * Registers *)

Definition keep_own : protocol := Protocol (fun _ => 0) (fun _ v => Decide v).

Theorem registers_have_number_one : consensus_number registers 1.
Proof.
  split; [|apply two_processes_cannot, registers_are_blind].
  exists keep_own. split; [easy|]. intros [|v [|]] L; try discriminate L.
  assert (N : forall c, reaches (start keep_own, cast keep_own 0 [v]) c -> snd c = [Decide v]).
  { intros c R. inversion R as [|? ? S]; subst; [reflexivity|]. apply step_of_one in S as (o & next & E). discriminate E. }
  split; [intros m ps w x R I J | intros m ps w R I]; specialize (N _ R); simpl in N; subst ps.
  - destruct I as [I|[]], J as [J|[]]. congruence.
  - destruct I as [I|[]]. injection I as <-. now left.
Qed.

Corollary registers_cannot n : 2 <= n -> ~ can_solve registers n.
Proof. apply more_cannot, two_processes_cannot, registers_are_blind. Qed.

(** * Fetch-and-add *)

(** Each leaves its input in a word of its own and takes a number; the second takes the first one's input. *)
Definition by_number (i : nat) (v : value) : program :=
  Do (Write (1 + i) v) (fun _ =>
  Do (FetchAdd 0 1) (fun r =>
    match r with Got 0 => Decide v | _ => Do (Read (2 - i)) (fun r => match r with Got w => Decide w | _ => Decide v end) end)).

Definition numbered : protocol := Protocol (fun _ => 0) by_number.

Definition settled (v w : value) (c : configuration) : Prop :=
  (forall x y, In (Decide x) (snd c) -> In (Decide y) (snd c) -> x = y) /\
  (forall x, In (Decide x) (snd c) -> x = v \/ x = w).

Ltac explore :=
  split; [split; simpl; intros; intuition congruence|];
  let c := fresh "c" in let S := fresh "S" in let E := fresh "E" in
  intros c S; apply step_of_two in S as [(?o & ?next & E & ->)|(?o & ?next & E & ->)];
  (discriminate E || (injection E; clear E; intros; subst; cbn)).

Lemma numbered_settles v w : within 6 (settled v w) (start numbered, cast numbered 0 [v; w]).
Proof. unfold numbered, by_number. cbn. repeat explore. Qed.

Theorem fetch_add_has_number_two : consensus_number fetch_add 2.
Proof.
  split; [|apply three_processes_cannot, additions_interfere].
  exists numbered. split.
  - intros i v. simpl. split; [easy | intros _; split; [easy|]].
    intros [|[|]|]; simpl; try easy; (split; [easy | intros []; easy]).
  - intros [|v [|w [|]]] L; try discriminate L.
    split; [intros m ps x y R I J | intros m ps x R I];
      apply (within_reaches _ _ _ _ (numbered_settles v w)) in R as [A V]; [now apply A|].
    destruct (V x I) as [-> | ->]; simpl; auto.
Qed.

Corollary fetch_add_cannot n : 3 <= n -> ~ can_solve fetch_add n.
Proof. apply more_cannot, three_processes_cannot, additions_interfere. Qed.

(** * Compare-and-swap *)

(** Who finds the word free leaves its input there. *)
Definition take_word (v : value) : program :=
  Do (CompareSwap 0 0 (S v)) (fun r => match r with Swapped false (S w) => Decide w | _ => Decide v end).

Definition taken : protocol := Protocol (fun _ => 0) (fun _ => take_word).

Definition undecided (inputs : list value) (p : program) : Prop := exists v, In v inputs /\ p = take_word v.

Definition taken_by (inputs : list value) (c : configuration) : Prop :=
  fst c 0 = 0 /\ Forall (undecided inputs) (snd c) \/
  exists w, In w inputs /\ fst c 0 = S w /\ Forall (fun p => undecided inputs p \/ p = Decide w) (snd c).

Lemma undecided_cast inputs : forall all i, incl inputs all -> Forall (undecided all) (cast taken i inputs).
Proof.
  induction inputs as [|v inputs IH]; intros all i H; simpl; constructor.
  - exists v. split; [apply H; now left | reflexivity].
  - apply IH. intros w I. apply H. now right.
Qed.

Lemma taken_by_step inputs c c' : taken_by inputs c -> step c c' -> taken_by inputs c'.
Proof.
  intros T S. inversion S as [m before o next later]; subst. destruct T as [[Z F]|(w & I & Z & F)]; simpl in *;
    apply Forall_app in F as [F1 F2]; apply Forall_cons_iff in F2 as [H F2].
  - destruct H as (v & I & E). injection E as -> ->. right. exists v. unfold answer, after. simpl. rewrite Z. simpl.
    split; [exact I | split; [apply set_here|]]. apply Forall_app. split; [|constructor; [now right|]].
    + eapply Forall_impl; [|exact F1]. now left.
    + eapply Forall_impl; [|exact F2]. now left.
  - destruct H as [(v & J & E)|E]; [|discriminate E]. injection E as -> ->.
    right. exists w. unfold answer, after. simpl. rewrite Z. simpl.
    split; [exact I | split; [now rewrite set_here|]]. apply Forall_app. split; [exact F1 | constructor; [now right | exact F2]].
Qed.

Lemma taken_by_reached inputs c c' : taken_by inputs c -> reaches c c' -> taken_by inputs c'.
Proof. intros T R. induction R as [|c c' c'' S R IH]; [exact T|]. apply IH. now apply taken_by_step with c. Qed.

Lemma taken_by_decided inputs c v :
  taken_by inputs c -> In (Decide v) (snd c) -> In v inputs /\ fst c 0 = S v.
Proof.
  intros [[_ F]|(w & I & Z & F)] D; rewrite Forall_forall in F; specialize (F _ D).
  - destruct F as (u & _ & E). discriminate E.
  - destruct F as [(u & _ & E)|E]; [discriminate E|]. injection E as ->. auto.
Qed.

Theorem compare_swap_solves_any_number n : can_solve compare_swap n.
Proof.
  exists taken. split.
  - intros i v. simpl. split; [easy|]. intros [| |[] []]; easy.
  - intros inputs _.
    assert (B : taken_by inputs (start taken, cast taken 0 inputs))
      by (left; split; [reflexivity | apply undecided_cast; now intros w]).
    split; [intros m ps v w R I J | intros m ps v R I]; apply (taken_by_reached _ _ _ B) in R;
      apply (taken_by_decided _ _ _ R) in I as [I E]; [|exact I].
    apply (taken_by_decided _ _ _ R) in J as [J F]. simpl in E, F. congruence.
Qed.
