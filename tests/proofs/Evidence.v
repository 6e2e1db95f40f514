(** What a report proves (src/README.md, "Levels of proof"; src/proto/ledger/evidence.rs).

    Owns one incarnation: a NIC that executed some number of packets of what was posted on it, in order, and a report at one
    of three levels. Shows that every finding made of a truthful report is true. Then what all incarnations together
    prove. Packet numbers are unwrapped here; that the 24 bits on the wire are unwrapped rightly is tested in
    src/proto/tests/ledger. *)

From Coq Require Import Arith Bool List Lia.
Import ListNotations.
From Shift Require Import Terms.

(** * One incarnation *)

Record posted := Posted { span : nat; consumes : bool }.

Inductive report :=
| Exact (packets : nat)        (* every packet before this one was executed, none from it on *)
| Counted (receives : nat)     (* exactly so many receives were consumed *)
| Successes (receives : nat).  (* at least so many *)

(** Packets executed of each posting, if [k] were in all. *)
Fixpoint executed (k : nat) (ps : list posted) : list nat :=
  match ps with [] => [] | p :: ps => Nat.min (span p) k :: executed (k - span p) ps end.

Definition consumed (p : posted) : nat := if consumes p then 1 else 0.

(** Receives that those packets consumed: one for each request that was executed whole. *)
Fixpoint receives (k : nat) (ps : list posted) : nat :=
  match ps with
  | [] => 0
  | p :: ps => (if span p <=? k then consumed p else 0) + receives (k - span p) ps
  end.

Definition truthful (k : nat) (ps : list posted) (r : report) : Prop :=
  match r with
  | Exact e => e = k
  | Counted c => c = receives k ps
  | Successes c => c <= receives k ps
  end.

(** Of a posting behind [first] packets and [ordinal] receives. *)
Definition find (r : report) (first ordinal : nat) (p : posted) : finding :=
  match r with
  | Exact e =>
      match e - first with
      | 0 => FoundUntouched
      | S d => if S d <? span p then FoundPartial (S d) else FoundExecuted
      end
  | Counted c =>
      if ordinal <? c then FoundExecuted
      else if c <? ordinal then FoundBehind
      else if consumes p then FoundIncomplete else FoundNothing
  | Successes c => if ordinal <? c then FoundExecuted else FoundNothing
  end.

Fixpoint findings (r : report) (first ordinal : nat) (ps : list posted) : list finding :=
  match ps with
  | [] => []
  | p :: ps => find r first ordinal p :: findings r (first + span p) (ordinal + consumed p) ps
  end.

(** [total] packets were posted, [done] executed, and [took]: it took effect whole. *)
Definition true_of (receiving : bool) (total done : nat) (took : bool) (f : finding) : Prop :=
  match f with
  | FoundExecuted => took = true
  | FoundPartial k => took = false /\ done = k /\ 0 < k /\ k < total
  | FoundUntouched | FoundBehind => took = false /\ done = 0
  | FoundIncomplete => took = false /\ receiving = true
  | FoundNothing => True
  end.

Fixpoint all_true (ps : list posted) (done : list nat) (fs : list finding) : Prop :=
  match ps, done, fs with
  | p :: ps, d :: done, f :: fs => true_of (consumes p) (span p) d (span p <=? d) f /\ all_true ps done fs
  | [], [], [] => True
  | _, _, _ => False
  end.

Lemma nothing_consumes_nothing ps : Forall (fun p => 0 < span p) ps -> receives 0 ps = 0.
Proof.
  induction 1 as [|p ps H F IH]; simpl; [reflexivity|].
  rewrite IH. destruct (Nat.leb_spec (span p) 0); lia.
Qed.

Ltac compare_all :=
  repeat match goal with
  | |- context [?x <? ?y] => destruct (Nat.ltb_spec x y)
  | |- context [?x <=? ?y] => destruct (Nat.leb_spec x y)
  end.

Lemma exact_findings_are_true k ps : forall first,
  Forall (fun p => 0 < span p) ps ->
  forall ordinal, all_true ps (executed (k - first) ps) (findings (Exact k) first ordinal ps).
Proof.
  induction ps as [|p ps IH]; intros first F ordinal; simpl; [exact I|].
  apply Forall_cons_iff in F as [P F]. split.
  - destruct (k - first) as [|d] eqn:E; compare_all; simpl; try lia; try (split; lia).
  - replace (k - first - span p) with (k - (first + span p)) by lia. now apply IH.
Qed.

(** [c] receives in all: behind what was executed it counts on; behind what was not it stands still. *)
Definition counts (k first ordinal c : nat) (ps : list posted) : Prop :=
  first <= k /\ c = ordinal + receives (k - first) ps \/ k <= first /\ c <= ordinal.

Lemma counts_on k first ordinal c p ps :
  Forall (fun p => 0 < span p) (p :: ps) -> counts k first ordinal c (p :: ps) ->
  counts k (first + span p) (ordinal + consumed p) c ps /\
  (ordinal < c -> span p <= k - first) /\
  (c < ordinal -> k <= first) /\
  (c <= ordinal -> consumes p = true -> k - first < span p).
Proof.
  intros F C. apply Forall_cons_iff in F as [P F]. unfold counts, consumed in *. simpl in C. unfold consumed in C.
  destruct C as [[B E]|[B E]]; [|repeat split; intros; try lia; right; lia].
  replace (k - (first + span p)) with (k - first - span p) by lia.
  destruct (Nat.leb_spec (span p) (k - first)) as [L|L]; destruct (consumes p); try (repeat split; intros; lia).
  all: replace (k - first - span p) with 0 in E by lia; rewrite (nothing_consumes_nothing ps F) in E;
    repeat split; intros; lia.
Qed.

Lemma counted_findings_are_true k c ps : forall first ordinal,
  Forall (fun p => 0 < span p) ps -> counts k first ordinal c ps ->
  all_true ps (executed (k - first) ps) (findings (Counted c) first ordinal ps) /\
  (forall c', c' <= c -> all_true ps (executed (k - first) ps) (findings (Successes c') first ordinal ps)).
Proof.
  induction ps as [|p ps IH]; intros first ordinal F C; [simpl; auto|].
  destruct (counts_on _ _ _ _ _ _ F C) as (C' & X & Y & Z).
  apply Forall_cons_iff in F as [P F]. destruct (IH _ _ F C') as [A B].
  replace (k - (first + span p)) with (k - first - span p) in A, B by lia.
  split; [|intros c' L]; (split; [|auto]); unfold find; compare_all; simpl; auto;
    try (destruct (consumes p) eqn:Q; simpl; auto); try (split; try lia); compare_all; auto; try lia.
Qed.

Theorem findings_are_true k ps r :
  Forall (fun p => 0 < span p) ps -> truthful k ps r -> all_true ps (executed k ps) (findings r 0 0 ps).
Proof.
  intros F T. replace k with (k - 0) at 1 by lia.
  assert (C : counts k 0 0 (receives k ps) ps) by (left; rewrite Nat.sub_0_r; lia).
  destruct r as [e|c|c]; simpl in T; subst.
  - now apply exact_findings_are_true.
  - now apply (counted_findings_are_true _ _ _ _ _ F C).
  - now apply (counted_findings_are_true _ _ _ _ _ F C).
Qed.

(** * All incarnations together *)

Definition says_executed (f : finding) : bool := match f with FoundExecuted => true | _ => false end.
Definition says_partial (f : finding) : bool := match f with FoundPartial _ => true | _ => false end.
Definition says_nothing (f : finding) : bool := match f with FoundNothing => true | _ => false end.
(** By packet number. *)
Definition is_exact (f : finding) : bool :=
  match f with FoundExecuted | FoundPartial _ | FoundUntouched => true | _ => false end.

Definition state_of (fs : list finding) : state :=
  if existsb says_executed fs then Executed
  else if existsb says_nothing fs then Unknown
  else if existsb says_partial fs then (if forallb is_exact fs then Partial else Unknown)
  else NotExecuted.

(** Not every incarnation proves that none of it was executed (of a SEND: that it did not complete). *)
Definition possibly_begun (o : opcode) (fs : list finding) : bool :=
  existsb
    (fun f => match f with
              | FoundExecuted | FoundNothing => true
              | FoundPartial _ | FoundIncomplete => negb (is_send o)
              | FoundUntouched | FoundBehind => false
              end) fs.

(** One packet of it is proven executed. *)
Definition begun (fs : list finding) : bool := existsb (fun f => says_executed f || says_partial f) fs.
