(** The walk over the ledger (src/proto/ledger/walk.rs, [write_landed] in src/proto/ledger/mod.rs).

    Owns what one entry's fate takes from the entries behind it, and where the walk stops. Shows that the two facts that
    Decision.v lets the environment choose are what it asks of them, and what holds of the stop. *)

From Coq Require Import Arith Bool List Lia.
Import ListNotations.
From Shift Require Import Terms Evidence Table Decision.

Record entry := Entry { asked : request; fenced : bool; postings : list posting }.

Definition proofs (e : entry) : list finding := map found (postings e).
Definition is_read (e : entry) : bool := match code (asked e) with Read => true | _ => false end.
Definition is_unknown_write (e : entry) : bool :=
  match code (asked e), state_of (proofs e) with Write, Unknown => true | _, _ => false end.

(** A later fenced request began, so the NIC had the results of everything before it in memory. *)
Definition landed (later : list entry) : bool := existsb (fun e => fenced e && begun (proofs e)) later.

Definition fenced_behind (later : list entry) : bool :=
  existsb (fun e => fenced e && negb (is_read e) && possibly_begun (code (asked e)) (proofs e)) later.

Fixpoint verdicts (es : list entry) : list (entry * verdict) :=
  match es with
  | [] => []
  | e :: later => (e, answer (asked e) (postings e) (landed later) (fenced_behind later)) :: verdicts later
  end.

(** How many come before the first that satisfies [p]. *)
Fixpoint first {A} (p : A -> bool) (l : list A) : option nat :=
  match l with
  | [] => None
  | x :: l => if p x then Some 0 else option_map S (first p l)
  end.

Definition is_error (v : verdict) : bool := match v with Error _ => true | _ => false end.

Definition earlier (x y : option nat) : option nat :=
  match x, y with Some n, Some k => Some (Nat.min n k) | Some n, None => Some n | None, y => y end.

(** [before]: where an earlier walk stopped. *)
Definition stop (before : option nat) (es : list entry) : option nat :=
  match earlier before (first (fun ev => is_error (snd ev)) (verdicts es)) with
  | None => None
  | Some n => Some (match first is_unknown_write (firstn n es) with Some k => k | None => n end)
  end.

Definition steps (before : option nat) (es : list entry) : list (entry * verdict) :=
  match stop before es with None => verdicts es | Some n => firstn n (verdicts es) end.

(** * The facts are what they are said to be *)

Definition possible_entry (e : entry) : Prop := all_possible (asked e) (postings e).

(** A NIC starts a fenced request only when the results of all earlier READs and atomics are in memory (InfiniBand
    Architecture Specification, "Fence indicator"); taken on trust. *)
Definition started (p : posting) : Prop := took p = true \/ done p > 0.
Definition fence_keeps (e : entry) (later : list entry) : Prop :=
  forall f, In f later -> fenced f = true -> Exists started (postings f) -> Exists (fun p => arrived p = true) (postings e).

Theorem what_is_said_to_have_landed_has e later :
  Forall possible_entry later -> fence_keeps e later -> landed later = true ->
  Exists (fun p => arrived p = true) (postings e).
Proof.
  intros F K L. apply existsb_exists in L as (f & I & B). apply andb_prop in B as [B1 B2].
  apply (K f I B1). rewrite Forall_forall in F. specialize (F f I).
  unfold possible_entry, all_possible in F. rewrite Forall_forall in F.
  apply existsb_exists in B2 as (g & J & S). apply in_map_iff in J as (p & <- & J).
  apply Exists_exists. exists p. split; [exact J|]. destruct (F p J) as (_ & _ & _ & T).
  destruct (found p); simpl in *; try discriminate; [now left|]. right. lia.
Qed.

(** Of a SEND that it completed: until then nobody may look at its buffer. *)
Definition has_begun (f : entry) : Prop :=
  Exists (fun p => took p = true \/ is_send (code (asked f)) = false /\ done p > 0) (postings f).

Theorem what_began_behind_is_said later f :
  Forall possible_entry later -> In f later -> fenced f = true -> is_read f = false -> has_begun f ->
  fenced_behind later = true.
Proof.
  intros F I B R H. apply existsb_exists. exists f. split; [exact I|]. rewrite B, R. simpl.
  destruct (possibly_begun _ _) eqn:P; [reflexivity|exfalso].
  rewrite Forall_forall in F. apply Exists_exists in H as (p & J & H).
  destruct (not_begun _ _ (F f I) P p J) as [T D]. destruct H as [H|[H1 H2]]; [congruence|].
  specialize (D H1). lia.
Qed.

(** Together: what the table is asked with satisfies what Decision.v supposes. *)
Theorem the_facts_hold e later began :
  Forall possible_entry later -> fence_keeps e later ->
  (began = true -> exists f, In f later /\ fenced f = true /\ is_read f = false /\ has_begun f) ->
  facts_hold (postings e) (landed later) began (fenced_behind later).
Proof.
  intros F K B. split.
  - now apply what_is_said_to_have_landed_has.
  - intro H. destruct (B H) as (f & I & X & R & Y). now apply (what_began_behind_is_said later f).
Qed.

(** * The stop *)

Lemma first_none {A} (p : A -> bool) l : first p l = None -> Forall (fun x => p x = false) l.
Proof.
  induction l as [|x l IH]; simpl; intro H; constructor; destruct (p x); try discriminate; auto;
    destruct (first p l); try discriminate; auto.
Qed.

Lemma first_some {A} (p : A -> bool) l : forall n, first p l = Some n -> Forall (fun x => p x = false) (firstn n l).
Proof.
  induction l as [|x l IH]; simpl; intros n H; [discriminate|].
  destruct (p x) eqn:P; [injection H as <-; constructor|].
  destruct (first p l) as [k|]; [|discriminate]. injection H as <-. constructor; auto.
Qed.

Lemma first_below {A} (p : A -> bool) l : forall n k, first p (firstn n l) = Some k -> k < n.
Proof.
  induction l as [|x l IH]; intros [|n] k H; simpl in H; try discriminate.
  destruct (p x); [injection H as <-; lia|].
  destruct (first p (firstn n l)) as [j|] eqn:E; [|discriminate]. injection H as <-. specialize (IH n j E). lia.
Qed.

Lemma firstn_less {A} (P : A -> Prop) l n k : k <= n -> Forall P (firstn n l) -> Forall P (firstn k l).
Proof.
  intros L F. replace k with (Nat.min k n) by lia. rewrite <- firstn_firstn.
  apply Forall_forall. intros x I. rewrite Forall_forall in F. apply F.
  rewrite <- (firstn_skipn k (firstn n l)). apply in_or_app. now left.
Qed.

(** A stop that was found is kept, or moves forward to an earlier entry. *)
Theorem a_stop_never_moves_back n es : exists k, stop (Some n) es = Some k /\ k <= n.
Proof.
  unfold stop. destruct (first _ (verdicts es)) as [j|]; simpl.
  - destruct (first is_unknown_write (firstn (Nat.min n j) es)) as [k|] eqn:E; eexists; (split; [reflexivity|]); [|lia].
    apply first_below in E. lia.
  - destruct (first is_unknown_write (firstn n es)) as [k|] eqn:E; eexists; (split; [reflexivity|]); [|lia].
    apply first_below in E. lia.
Qed.

(** What comes before the stop is complete or posted again, in the order of the posts; nothing else is. *)
Theorem no_step_is_an_error before es : Forall (fun ev => is_error (snd ev) = false) (steps before es).
Proof.
  unfold steps, stop. destruct (first _ (verdicts es)) as [j|] eqn:E.
  2: { apply first_none in E. destruct (earlier before None) as [n|]; [|exact E].
       apply (firstn_less _ _ (length (verdicts es) + n)); [|now rewrite firstn_all2 by lia].
       destruct (first is_unknown_write (firstn n es)) as [k|] eqn:U; [apply first_below in U|]; lia. }
  apply first_some in E.
  assert (N : exists n, earlier before (Some j) = Some n /\ n <= j).
  { destruct before as [b|]; simpl; eexists; (split; [reflexivity|lia]). }
  destruct N as (n & -> & N).
  destruct (first is_unknown_write (firstn n es)) as [k|] eqn:U; eapply firstn_less; try exact E; [|exact N].
  apply first_below in U. lia.
Qed.

Lemma verdicts_entries es : map fst (verdicts es) = es.
Proof. induction es as [|e es IH]; simpl; congruence. Qed.

(** In front of a stop no WRITE of unknown execution is posted again: its buffer may be the application's already. *)
Theorem no_unknown_write_is_posted_in_front_of_a_stop before es n :
  stop before es = Some n -> Forall (fun ev => is_unknown_write (fst ev) = false) (steps before es).
Proof.
  intro S. assert (S' := S). unfold steps. rewrite S. unfold stop in S'.
  destruct (earlier before _) as [k|]; [|discriminate]. injection S' as <-.
  assert (F : Forall (fun e => is_unknown_write e = false)
                (firstn (match first is_unknown_write (firstn k es) with Some j => j | None => k end) es)).
  { destruct (first is_unknown_write (firstn k es)) as [j|] eqn:E.
    - apply first_below in E as L. apply first_some in E. rewrite firstn_firstn in E.
      now replace (Nat.min j k) with j in E by lia.
    - now apply first_none in E. }
  rewrite <- (verdicts_entries es) in F at 2. rewrite firstn_map in F. now apply Forall_map in F.
Qed.
