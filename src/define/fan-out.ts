import { assertCounts } from "./count.ts";

export interface FanOutOptions {
  /** The most invocations that go on for others at the same time, on all hosts together. */
  max: number;
  /**
   * The most connections to NATS that invocations have at the same time, on all hosts together. `outside` of them are kept
   * for invocations without a place. @default as many as `max` and `outside` need
   */
  connections?: number;
  /**
   * How many invocations without a place run at the same time: those that a cron trigger, a kick or a person starts. Nobody
   * counts them, so that this is for you to say. @default 2, for ticks that overlap
   */
  outside?: number;
}

/** How far invocations go on for others, as plain data. */
export interface FanOut {
  readonly max: number;
  /** How many of them may be connected at the same time. */
  readonly places: number;
}

/** Throws `invalid-definition` for what leaves no place at all. */
export function fanOutOf({ max, connections, outside = 2 }: FanOutOptions): FanOut {
  const what = "createApp, fanOut";
  assertCounts({ max }, what);
  if (outside !== 0) assertCounts({ outside }, what);
  const places = connections === undefined ? max : connections - outside;
  assertCounts({ "connections less outside": places }, what);
  return { max, places: Math.min(max, places) };
}
