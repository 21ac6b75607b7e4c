/** What an invocation leaves of one consumer, and what it did of it. */
export interface Progress {
  /** Messages that another invocation would find now. */
  readonly ready: number;
  /** Messages that it acknowledged. */
  readonly done: number;
}

/** What there is to know when an invocation is about to end. */
export interface Going {
  readonly consumers: readonly Progress[];
  /** How long it ran, and how long the next one may, in milliseconds. */
  readonly ms: number;
  readonly budgetMs: number;
  /** The most that go on at the same time. */
  readonly max: number;
  /** How many others do. */
  readonly others: number;
  /** Places that nobody has; below 0 where there are fewer than are taken. */
  readonly free: number;
  /** Whether it has a place itself, which the next one takes over. */
  readonly placed: boolean;
}

/**
 * How many invocations to start: so many that all who go on, at the pace of this one, would be through with what is left in
 * one more invocation each. None where nothing is left, and none where this one got nothing done: what fails, or
 * takes longer than an invocation has, is not helped by more of them.
 */
export function planContinuation({ consumers, ms, budgetMs, max, others, free, placed }: Going): number {
  const pace = Math.max(1, budgetMs / Math.max(1, ms));
  const shares = consumers.map(({ ready, done }) => (ready > 0 && done > 0 ? ready / (done * pace) : 0));
  const wanted = Math.min(max, Math.ceil(Math.max(0, ...shares)));
  if (wanted === 0 || free < 0) return 0;
  const more = Math.max(0, Math.min(wanted - others - (placed ? 1 : 0), free));
  return placed ? 1 + more : more; // who has a place goes on in any case: the others may have died
}
