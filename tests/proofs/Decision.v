(** The decision table keeps the safety rule (src/README.md, "The safety rule" and "The decision table").

    One request and all its postings, each on an incarnation of its own, in any number. The environment chooses how many packets
    of a posting are executed, whether it takes effect, whether the result arrives, and any finding that is true; the table
    that the shim compiles (Table.v) chooses whether it is posted again. What holds then holds for every behaviour of the
    network, the NICs and the reports that the model has. *)

From Coq Require Import Arith Bool List Lia.
Import ListNotations.
From Shift Require Import Terms Evidence Table.

Record request := Request { code : opcode; policy : on_unknown; packets : nat }.

Record posting := Posting {
  from : nat;        (* packets left out, because they are proven executed *)
  done : nat;        (* packets executed, from there on *)
  took : bool;       (* it took effect: all executed, the receive consumed if it consumes one *)
  arrived : bool;    (* of a READ or atomic: the result is in the requester's memory *)
  behind : bool;     (* when it was posted, a later fenced request other than a READ had begun *)
  found : finding;   (* what the receiver's report proves of it *)
}.

(** A request may be executed to its last packet and not take effect: of a WRITE_WITH_IMM the data may lie there before the
    receive is consumed. *)
Definition possible (r : request) (p : posting) : Prop :=
  from p + done p <= packets r /\
  (took p = true -> from p + done p = packets r) /\
  (arrived p = true -> took p = true) /\
  true_of (consumes_receive (code r)) (packets r - from p) (done p) (took p) (found p).

(** Newest first. *)
Definition effects (h : list posting) : nat := length (filter took h).

Definition covers (k : nat) (p : posting) : bool := (from p <=? k) && (k <? from p + done p).

(** How often that packet was executed. *)
Definition times (k : nat) (h : list posting) : nat := length (filter (covers k) h).

Fixpoint proven_offset (h : list posting) : nat :=
  match h with
  | [] => 0
  | p :: h => Nat.max (match found p with FoundPartial k => from p + k | _ => 0 end) (proven_offset h)
  end.

Definition answer (r : request) (h : list posting) (landed fenced_behind : bool) : verdict :=
  let fs := map found h in
  decide (code r) (state_of fs) landed (policy r) (possibly_begun (code r) fs) fenced_behind.

(** The verdict has the request posted, from that packet on. *)
Definition posts (v : verdict) (offset first : nat) : Prop :=
  match v with Replay => first = 0 | ReplayFromProven => first = offset | Complete | Error _ => False end.

(** The facts that no finding gives: a result is said to have landed only if it has, and that a fenced request began
    behind is said at least when it did. *)
Definition facts_hold (h : list posting) (landed : bool) (begun fenced_behind : bool) : Prop :=
  (landed = true -> Exists (fun p => arrived p = true) h) /\ (begun = true -> fenced_behind = true).

Inductive lived (r : request) : list posting -> Prop :=
| held : lived r []
| posted_again h p landed fenced_behind :
    lived r h -> possible r p -> facts_hold h landed (behind p) fenced_behind ->
    posts (answer r h landed fenced_behind) (proven_offset h) (from p) -> lived r (p :: h).

(** * That there is something to prove *)

(** Every request can be lost, posted again and executed. *)
Theorem every_request_may_be_posted_again o p :
  exists h, lived (Request o p 2) h /\ length h = 2 /\ effects h = 1.
Proof.
  exists [Posting 0 2 true true false FoundExecuted; Posting 0 0 false false false FoundUntouched].
  split; [|split; reflexivity].
  apply posted_again with (landed := false) (fenced_behind := false); [|repeat split; simpl; (discriminate || lia || auto) ..|].
  - apply posted_again with (landed := false) (fenced_behind := false);
      [apply held | repeat split; simpl; (discriminate || lia || auto) .. |]. destruct o, p; reflexivity.
  - destruct o, p; reflexivity.
Qed.

(** A WRITE of which one packet is proven executed goes on with the next. *)
Theorem a_write_may_go_on_where_it_stood p :
  exists h, lived (Request Write p 2) h /\ times 0 h = 1 /\ times 1 h = 1.
Proof.
  exists [Posting 1 1 true false false FoundExecuted; Posting 0 1 false false false (FoundPartial 1)].
  split; [|split; reflexivity].
  apply posted_again with (landed := false) (fenced_behind := false); [|repeat split; simpl; (discriminate || lia || auto) ..|].
  - apply posted_again with (landed := false) (fenced_behind := false);
      [apply held | repeat split; simpl; (discriminate || lia || auto) .. |]. destruct p; reflexivity.
  - destruct p; reflexivity.
Qed.

(** * What the table asks for, row by row *)

Ltac rows :=
  intros; repeat match goal with
  | o : opcode |- _ => destruct o
  | s : state |- _ => destruct s
  | p : on_unknown |- _ => destruct p
  | b : bool |- _ => destruct b
  end; simpl in *; try discriminate; auto; try easy; try tauto.

Lemma a_message_is_decided_by_what_is_proven o s l p b f :
  consumes_receive o = true ->
  match decide o s l p b f with
  | Complete => s = Executed
  | Replay => s = Partial \/ s = NotExecuted
  | ReplayFromProven => False
  | Error _ => s = Unknown \/ o = WriteImm /\ p = PolicyError
  end.
Proof. rows. Qed.

Lemma an_atomic_is_decided_by_its_result o s l p b f :
  is_atomic o = true ->
  match decide o s l p b f with
  | Complete => l = true
  | Replay => s = NotExecuted /\ l = false
  | ReplayFromProven => False
  | Error _ => l = false /\ s <> NotExecuted
  end.
Proof. rows. Qed.

Lemma a_write_is_decided_by_what_is_proven_or_by_policy s l p b f :
  match decide Write s l p b f with
  | Complete => s = Executed
  | Replay => False
  | ReplayFromProven => s = Partial \/ s = NotExecuted \/ s = Unknown /\ p = PolicyReplay
  | Error _ => s = Unknown /\ p = PolicyError
  end.
Proof. rows. Qed.

Lemma a_read_is_decided_by_its_result_and_by_what_is_behind s l p b f :
  match decide Read s l p b f with
  | Complete => l = true
  | Replay => l = false /\ f = false /\ (p = PolicyError -> b = false)
  | ReplayFromProven => False
  | Error _ => l = false /\ (f = true \/ p = PolicyError /\ b = true)
  end.
Proof. rows. Qed.

Lemma data_with_immediate_is_placed_again_only_by_policy s l b f :
  match decide WriteImm s l PolicyError b f with Replay => s = NotExecuted /\ b = false | _ => True end.
Proof. rows. Qed.

(** Nothing is given up that the proofs allow to be done. *)
Theorem what_is_proven_is_no_error_but_for_lost_results o s l p b f :
  s <> Unknown ->
  match decide o s l p b f with
  | Error why =>
      o = WriteImm /\ p = PolicyError /\ (s = Partial \/ s = NotExecuted /\ b = true) \/
      o = Read /\ l = false /\ (f = true \/ p = PolicyError /\ b = true) \/
      is_atomic o = true /\ l = false /\ s <> NotExecuted
  | _ => True
  end.
Proof. rows; intuition discriminate. Qed.

Theorem only_writes_and_reads_are_repeated_without_proof o l p b f offset first :
  posts (decide o Unknown l p b f) offset first -> (o = Write /\ p = PolicyReplay) \/ o = Read.
Proof. rows. Qed.

(** * What the states mean *)

Lemma existsb_none {A} (f : A -> bool) l : existsb f l = false -> forall x, In x l -> f x = false.
Proof.
  intros E x I. destruct (f x) eqn:F; [|reflexivity].
  assert (existsb f l = true) by (apply existsb_exists; eauto). congruence.
Qed.

Lemma state_cases fs :
  match state_of fs with
  | Executed => existsb says_executed fs = true
  | Partial => existsb says_executed fs = false /\ existsb says_nothing fs = false /\ forallb is_exact fs = true
  | NotExecuted => existsb says_executed fs = false /\ existsb says_nothing fs = false /\ existsb says_partial fs = false
  | Unknown => forallb is_exact fs = false
  end.
Proof.
  unfold state_of. destruct (existsb says_executed fs) eqn:E; [reflexivity|].
  destruct (existsb says_nothing fs) eqn:N.
  - apply existsb_exists in N as (f & I & N). destruct (forallb is_exact fs) eqn:X; [|reflexivity].
    rewrite forallb_forall in X. specialize (X f I). destruct f; discriminate.
  - destruct (existsb says_partial fs) eqn:P; [destruct (forallb is_exact fs) eqn:X|]; auto.
Qed.

Definition all_possible (r : request) (h : list posting) : Prop := Forall (possible r) h.

Lemma lived_possible r h : lived r h -> all_possible r h.
Proof. induction 1; constructor; auto. Qed.

Lemma nothing_took r h :
  all_possible r h -> state_of (map found h) = Partial \/ state_of (map found h) = NotExecuted -> effects h = 0.
Proof.
  intros A S. unfold effects. destruct (filter took h) as [|p l] eqn:E; [reflexivity|exfalso].
  assert (I : In p (filter took h)) by (rewrite E; now left). apply filter_In in I as [I T].
  unfold all_possible in A. rewrite Forall_forall in A. destruct (A p I) as (_ & _ & _ & F).
  assert (J : In (found p) (map found h)) by now apply in_map.
  assert (C := state_cases (map found h)).
  destruct S as [S|S]; rewrite S in C; destruct C as (C1 & C2 & _);
    apply (existsb_none _ _ C1) in J as J1; apply (existsb_none _ _ C2) in J as J2;
    destruct (found p); simpl in *; try discriminate; destruct F; congruence.
Qed.

Lemma something_took r h :
  all_possible r h -> state_of (map found h) = Executed -> exists p, In p h /\ took p = true.
Proof.
  intros A S. assert (C := state_cases (map found h)). rewrite S in C.
  apply existsb_exists in C as (f & I & E). apply in_map_iff in I as (p & <- & I).
  unfold all_possible in A. rewrite Forall_forall in A. destruct (A p I) as (_ & _ & _ & F).
  exists p. split; [exact I|]. destruct (found p); simpl in *; try discriminate. exact F.
Qed.

Lemma effects_some h p : In p h -> took p = true -> effects h > 0.
Proof.
  intros I T. unfold effects. assert (J : In p (filter took h)) by now apply filter_In.
  destruct (filter took h); [destruct J | simpl; lia].
Qed.

Lemma effects_cons p h : effects (p :: h) <= 1 + effects h.
Proof. unfold effects. simpl. destruct (took p); simpl; lia. Qed.

(** A proof of every incarnation that it did not begin. *)
Lemma not_begun r h :
  all_possible r h -> possibly_begun (code r) (map found h) = false ->
  forall p, In p h -> took p = false /\ (is_send (code r) = false -> done p = 0).
Proof.
  intros A B p I. unfold all_possible in A. rewrite Forall_forall in A. destruct (A p I) as (_ & _ & _ & F).
  assert (N := existsb_none _ _ B (found p) (in_map found h p I)).
  destruct (found p); simpl in *; try discriminate; destruct F as [T F]; split; auto;
    destruct (is_send (code r)); try discriminate; auto.
Qed.

(** * Rule 1: SEND, SEND_WITH_IMM and WRITE_WITH_IMM happen once *)

Theorem a_message_takes_effect_at_most_once r h :
  consumes_receive (code r) = true -> lived r h -> effects h <= 1.
Proof.
  intros C L. induction L as [|h p l f L IH P F V]; [cbn; lia|].
  assert (D := a_message_is_decided_by_what_is_proven (code r) (state_of (map found h)) l (policy r)
                 (possibly_begun (code r) (map found h)) f C).
  fold (answer r h l f) in D. destruct (answer r h l f); simpl in V; try contradiction.
  apply (nothing_took r h (lived_possible r h L)) in D. generalize (effects_cons p h). lia.
Qed.

Theorem a_message_that_is_complete_took_effect_once r h l f :
  consumes_receive (code r) = true -> lived r h -> answer r h l f = Complete -> effects h = 1.
Proof.
  intros C L A. assert (M := a_message_takes_effect_at_most_once r h C L).
  assert (D := a_message_is_decided_by_what_is_proven (code r) (state_of (map found h)) l (policy r)
                 (possibly_begun (code r) (map found h)) f C).
  fold (answer r h l f) in D. rewrite A in D.
  apply (something_took r h (lived_possible r h L)) in D as (p & I & T). generalize (effects_some h p I T). lia.
Qed.

(** * Rule 2: an atomic happens at most once *)

Theorem an_atomic_takes_effect_at_most_once r h : is_atomic (code r) = true -> lived r h -> effects h <= 1.
Proof.
  intros C L. induction L as [|h p l f L IH P F V]; [cbn; lia|].
  assert (D := an_atomic_is_decided_by_its_result (code r) (state_of (map found h)) l (policy r)
                 (possibly_begun (code r) (map found h)) f C).
  fold (answer r h l f) in D. destruct (answer r h l f); simpl in V; try contradiction.
  destruct D as [D _]. assert (E := nothing_took r h (lived_possible r h L) (or_intror D)). generalize (effects_cons p h). lia.
Qed.

Theorem an_atomic_that_is_complete_happened_once_and_its_result_is_here r h l f b :
  is_atomic (code r) = true -> lived r h -> facts_hold h l b f -> answer r h l f = Complete ->
  effects h = 1 /\ Exists (fun p => arrived p = true) h.
Proof.
  intros C L [H _] A. assert (M := an_atomic_takes_effect_at_most_once r h C L).
  assert (D := an_atomic_is_decided_by_its_result (code r) (state_of (map found h)) l (policy r)
                 (possibly_begun (code r) (map found h)) f C).
  fold (answer r h l f) in D. rewrite A in D. specialize (H D). split; [|exact H].
  apply Exists_exists in H as (p & I & X). assert (P := lived_possible r h L).
  unfold all_possible in P. rewrite Forall_forall in P. destruct (P p I) as (_ & _ & T & _).
  specialize (T X). generalize (effects_some h p I T). lia.
Qed.

(** * Rule 3: a WRITE happens once as far as is proven *)

Lemma nothing_beyond_the_offset r h k :
  all_possible r h -> consumes_receive (code r) = false ->
  state_of (map found h) = Partial \/ state_of (map found h) = NotExecuted -> proven_offset h <= k -> times k h = 0.
Proof.
  intros A N S. unfold times. intro K.
  destruct (filter (covers k) h) as [|p l] eqn:E; [reflexivity|exfalso].
  assert (I : In p (filter (covers k) h)) by (rewrite E; now left). apply filter_In in I as [I C].
  apply andb_prop in C as [C1 C2]. apply Nat.leb_le in C1. apply Nat.ltb_lt in C2.
  assert (O : match found p with FoundPartial k => from p + k | _ => 0 end <= proven_offset h).
  { clear - I. induction h as [|q h IH]; [destruct I|]. simpl. destruct I as [->|I]; [lia|]. specialize (IH I). lia. }
  unfold all_possible in A. rewrite Forall_forall in A. destruct (A p I) as (_ & _ & _ & F).
  assert (J : In (found p) (map found h)) by now apply in_map.
  assert (X := state_cases (map found h)).
  destruct S as [S|S]; rewrite S in X; destruct X as (X1 & X2 & _);
    apply (existsb_none _ _ X1) in J as J1; apply (existsb_none _ _ X2) in J as J2;
    destruct (found p); simpl in *; try discriminate; destruct F as [F1 F2]; try lia; congruence.
Qed.

Lemma times_cons k p h : times k (p :: h) = (if covers k p then 1 else 0) + times k h.
Proof. unfold times. simpl. destruct (covers k p); reflexivity. Qed.

(** Under the policy error, and under any policy where every report goes by packet number, no byte is written twice. *)
Theorem no_packet_of_a_write_is_executed_twice_without_leave r h :
  code r = Write -> policy r = PolicyError \/ forallb is_exact (map found h) = true -> lived r h ->
  forall k, times k h <= 1.
Proof.
  intros W X L k. induction L as [|h p l f L IH P F V]; [cbn; lia|].
  assert (X' : policy r = PolicyError \/ forallb is_exact (map found h) = true).
  { destruct X as [X|X]; [now left | right]. simpl in X. now apply andb_prop in X. }
  specialize (IH X'). rewrite times_cons. destruct (covers k p) eqn:C; [|lia].
  assert (D := a_write_is_decided_by_what_is_proven_or_by_policy (state_of (map found h)) l (policy r)
                 (possibly_begun Write (map found h)) f).
  unfold answer in V. rewrite W in V.
  destruct (decide Write _ _ _ _ _); simpl in V; try contradiction.
  assert (S : state_of (map found h) = Partial \/ state_of (map found h) = NotExecuted).
  { destruct D as [D|[D|[D Q]]]; auto. exfalso. destruct X' as [X'|X']; [congruence|].
    assert (U := state_cases (map found h)). rewrite D in U. congruence. }
  rewrite (nothing_beyond_the_offset r h k (lived_possible r h L)); auto; [now rewrite W|].
  apply andb_prop in C as [C _]. apply Nat.leb_le in C. congruence.
Qed.

(** What is left out of a replay was executed, so what is complete is there whole. *)
Lemma what_is_left_out_was_executed r h k : lived r h -> k < proven_offset h -> times k h > 0.
Proof.
  intro L. revert k. induction L as [|h p l f L IH P F V]; simpl; intros k K; [lia|].
  rewrite times_cons. destruct P as (_ & _ & _ & T).
  destruct (found p) as [|d| | | |] eqn:E; try (specialize (IH k K); lia).
  simpl in T. destruct T as (_ & D & _).
  destruct (Nat.ltb_spec k (proven_offset h)) as [B|B]; [specialize (IH k B); lia|].
  assert (R : from p <= k).
  { destruct (answer r h l f); simpl in V; try contradiction; lia. }
  unfold covers. rewrite (proj2 (Nat.leb_le _ _) R), (proj2 (Nat.ltb_lt k (from p + done p))) by lia. simpl. lia.
Qed.

Lemma what_took_effect_is_there_whole r h p :
  lived r h -> In p h -> took p = true -> forall k, k < packets r -> times k h > 0.
Proof.
  intros L I T k K. induction L as [|h q l f L IH P F V]; [destruct I|].
  rewrite times_cons. destruct I as [->|I]; [|specialize (IH I); lia].
  destruct P as (_ & W & _). specialize (W T).
  destruct (Nat.leb_spec (from p) k) as [B|B].
  - unfold covers. rewrite (proj2 (Nat.leb_le _ _) B), (proj2 (Nat.ltb_lt k (from p + done p))) by lia. simpl. lia.
  - enough (times k h > 0) by lia. apply (what_is_left_out_was_executed r h k L).
    destruct (answer r h l f); simpl in V; try contradiction; lia.
Qed.

Theorem a_write_that_is_complete_is_there_whole r h l f :
  code r = Write -> lived r h -> answer r h l f = Complete -> forall k, k < packets r -> times k h > 0.
Proof.
  intros W L A.
  assert (D := a_write_is_decided_by_what_is_proven_or_by_policy (state_of (map found h)) l (policy r)
                 (possibly_begun Write (map found h)) f).
  unfold answer in A. rewrite W in A. rewrite A in D.
  apply (something_took r h (lived_possible r h L)) in D as (p & I & T). now apply (what_took_effect_is_there_whole r h p).
Qed.

(** The data of a WRITE_WITH_IMM, under the policy error. *)
Theorem no_packet_with_immediate_is_executed_twice_without_leave r h :
  code r = WriteImm -> policy r = PolicyError -> lived r h -> forall k, times k h <= 1.
Proof.
  intros W X L k. induction L as [|h p l f L IH P F V]; [cbn; lia|].
  rewrite times_cons. destruct (covers k p); [|lia].
  assert (D := data_with_immediate_is_placed_again_only_by_policy (state_of (map found h)) l
                 (possibly_begun WriteImm (map found h)) f).
  unfold answer in V. rewrite W, X in V.
  assert (M := a_message_is_decided_by_what_is_proven WriteImm (state_of (map found h)) l PolicyError
                 (possibly_begun WriteImm (map found h)) f eq_refl).
  assert (B : possibly_begun WriteImm (map found h) = false)
    by (destruct (decide WriteImm _ _ _ _ _); simpl in V; try contradiction; tauto).
  enough (times k h = 0) by lia. unfold times.
  destruct (filter (covers k) h) as [|q t] eqn:E; [reflexivity|exfalso].
  assert (I : In q (filter (covers k) h)) by (rewrite E; now left). apply filter_In in I as [I C].
  rewrite <- W in B. destruct (not_begun r h (lived_possible r h L) B q I) as [_ Z].
  rewrite W in Z. specialize (Z eq_refl). apply andb_prop in C as [C1 C2].
  apply Nat.leb_le in C1. apply Nat.ltb_lt in C2. lia.
Qed.

(** * Rule 4: a READ is not repeated once it landed or a fenced request behind it began *)

Theorem no_read_is_posted_behind_a_fenced_request_that_began r h :
  code r = Read -> lived r h -> Forall (fun p => behind p = false) h.
Proof.
  intros W L. induction L as [|h p l f L IH P [_ F] V]; constructor; [|exact IH].
  assert (D := a_read_is_decided_by_its_result_and_by_what_is_behind (state_of (map found h)) l (policy r)
                 (possibly_begun Read (map found h)) f).
  unfold answer in V. rewrite W in V. destruct (decide Read _ _ _ _ _); simpl in V; try contradiction.
  destruct (behind p); [|reflexivity]. specialize (F eq_refl). destruct D as (_ & D & _). congruence.
Qed.

(** Nor is an atomic. *)
Theorem what_landed_is_not_posted_again r h f offset first :
  code r = Read \/ is_atomic (code r) = true -> ~ posts (answer r h true f) offset first.
Proof.
  unfold answer. intros [W|W] V.
  - rewrite W in V.
    assert (D := a_read_is_decided_by_its_result_and_by_what_is_behind (state_of (map found h)) true (policy r)
                   (possibly_begun Read (map found h)) f).
    destruct (decide Read _ _ _ _ _); simpl in V; try contradiction. now destruct D.
  - assert (D := an_atomic_is_decided_by_its_result (code r) (state_of (map found h)) true (policy r)
                   (possibly_begun (code r) (map found h)) f W).
    destruct (decide _ _ _ _ _ _); simpl in V; try contradiction. now destruct D.
Qed.

Theorem a_read_that_is_complete_has_landed r h l f b :
  code r = Read -> facts_hold h l b f -> answer r h l f = Complete -> Exists (fun p => arrived p = true) h.
Proof.
  intros W [H _] A. apply H.
  assert (D := a_read_is_decided_by_its_result_and_by_what_is_behind (state_of (map found h)) l (policy r)
                 (possibly_begun Read (map found h)) f).
  unfold answer in A. rewrite W in A. now rewrite A in D.
Qed.

Theorem a_read_under_error_is_executed_at_most_once r h :
  code r = Read -> policy r = PolicyError -> lived r h -> effects h <= 1.
Proof.
  intros W X L. induction L as [|h p l f L IH P F V]; [cbn; lia|].
  assert (D := a_read_is_decided_by_its_result_and_by_what_is_behind (state_of (map found h)) l (policy r)
                 (possibly_begun Read (map found h)) f).
  unfold answer in V. rewrite W in V. destruct (decide Read _ _ _ _ _); simpl in V; try contradiction.
  destruct D as (_ & _ & B). specialize (B X). rewrite <- W in B.
  enough (effects h = 0) by (generalize (effects_cons p h); lia).
  unfold effects. destruct (filter took h) as [|q t] eqn:E; [reflexivity|exfalso].
  assert (I : In q (filter took h)) by (rewrite E; now left). apply filter_In in I as [I T].
  destruct (not_begun r h (lived_possible r h L) B q I). congruence.
Qed.
