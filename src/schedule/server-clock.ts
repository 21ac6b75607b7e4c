/** Two times of our own clock, in epoch milliseconds. */
export interface Between {
  readonly after: number;
  readonly by: number;
}

/** The server's clock, by which schedules are due, as far as it is known here: it is never ahead of that one. */
export interface ServerClock {
  /** The server's time, or a little less. */
  now(): number;
  /** What it is there when it is `ours` here, or a little less. */
  at(ours: number): number;
  /** By how much it may be later there than `now`. */
  readonly unsureMs: number;
  /** That it was this time for the server, to the millisecond, between two of ours: what is learned in a crowd tells little. */
  learn(time: number, between: Between): void;
}

/** `sooner` is called where it is later there than it was known to be. */
export function createServerClock(ourNow: () => number, sooner: () => void): ServerClock {
  let ahead = { least: -Infinity, most: Infinity };
  const at = (ours: number) => ours + ahead.least;
  return {
    now: () => at(ourNow()),
    at,
    get unsureMs() {
      return ahead.most - ahead.least;
    },
    learn(time, { after, by }) {
      const [least, most] = [time - by, time + 1 - after];
      const wasSet = least > ahead.most || most < ahead.least; // one of the clocks
      const before = ahead.least;
      ahead = wasSet ? { least, most } : { least: Math.max(least, ahead.least), most: Math.min(most, ahead.most) };
      if (ahead.least > before) sooner();
    },
  };
}
