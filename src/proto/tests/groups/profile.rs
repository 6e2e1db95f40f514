//! What may go wrong in a run.

/// What may go wrong, in chances of 1000.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    pub processes: usize,
    pub standbys: u64,
    /// Pairs whose paths have other numbers than those of others on the same rails.
    pub crossed: u64,
    /// Pairs whose ends are not on one rail: where all others of the one end go with it, those of the other end do not.
    pub twisted: u64,
    pub drop: u64,
    pub max_delay_us: u64,
    pub outages: u64,
    pub slow_fence: u64,
    pub destroy: u64,
    pub late: u64,
    pub hold: u64,
    pub silent: u64,
    /// A receive is taken in part for a while.
    pub partial: u64,
    /// Receives cannot be posted at once.
    pub refused: u64,
    /// A pair is not met for seconds, or never.
    pub unmet: u64,
    /// The application has an error of its own.
    pub error: u64,
    /// Pairs that do not exist, of those that could.
    pub sparse: u64,
    /// How often somebody wishes for a planned move.
    pub wishes: u64,
    /// Sends that take long to complete.
    pub slow_sends: u64,
}

impl Profile {
    pub const CALM: Self = Self {
        processes: 4,
        standbys: 1,
        crossed: 0,
        twisted: 0,
        drop: 0,
        max_delay_us: 5_000,
        outages: 1,
        slow_fence: 0,
        destroy: 0,
        late: 0,
        hold: 0,
        silent: 0,
        partial: 300,
        refused: 0,
        unmet: 0,
        error: 0,
        sparse: 0,
        wishes: 0,
        slow_sends: 0,
    };
    pub const ROUGH: Self = Self {
        processes: 3,
        standbys: 1,
        crossed: 0,
        twisted: 0,
        drop: 100,
        max_delay_us: 60_000,
        outages: 3,
        slow_fence: 100,
        destroy: 60,
        late: 200,
        hold: 200,
        silent: 100,
        partial: 300,
        refused: 300,
        unmet: 0,
        error: 40,
        sparse: 0,
        wishes: 0,
        slow_sends: 0,
    };
    /// Many small faults of few connections, among queue pairs that come late, or whose peer nobody knows.
    pub const CHURN: Self =
        Self { processes: 4, late: 500, unmet: 150, outages: 5, drop: 20, silent: 0, sparse: 400, ..Self::ROUGH };
    /// Nothing is wrong but the network of the agents, and who is asked for a planned move has work that takes long.
    pub const PLANS: Self = Self {
        processes: 5,
        drop: 50,
        max_delay_us: 20_000,
        outages: 0,
        hold: 100,
        refused: 300,
        sparse: 300,
        wishes: 12,
        slow_sends: 60,
        ..Self::CALM
    };
    /// Three rails; of the first one a port dies, and of the second one a while later.
    pub const THREE_RAILS: Self = Self { standbys: 2, crossed: 300, outages: 2, ..Self::CALM };
    /// The same among all that may go wrong.
    pub const THREE_ROUGH_RAILS: Self =
        Self { standbys: 2, crossed: 300, outages: 5, processes: 4, sparse: 300, ..Self::ROUGH };
    /// And where the standbys of two ends are not paired as those of others are.
    pub const TWISTED_RAILS: Self = Self { twisted: 300, unmet: 50, ..Self::THREE_ROUGH_RAILS };
    /// Planned moves with two standbys.
    pub const THREE_PLANS: Self = Self { standbys: 2, crossed: 300, ..Self::PLANS };
    /// The same where not all can go to the same rail.
    pub const TWISTED_PLANS: Self = Self { standbys: 2, crossed: 300, twisted: 200, ..Self::PLANS_AND_FAULTS };
    /// Planned moves among faults, late comers and ends.
    pub const PLANS_AND_FAULTS: Self = Self { wishes: 20, slow_sends: 60, outages: 3, unmet: 50, ..Self::CHURN };
}
