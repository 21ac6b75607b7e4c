import { pause } from "../nats/within.ts";

/** Pulls for what was published, with the time that its request still has. */
export interface Kicks<Of> {
  /**
   * Runs what pulls for `wanted` until `deadline` (epoch milliseconds) at most, or sees to it that someone does. Never
   * throws. `run` belongs to the request that kicks: in workerd nothing that one request opened is for another one.
   */
  kick(wanted: readonly Of[], deadline: number, run: (due: readonly Of[]) => Promise<unknown>): Promise<void>;
}

const lookMs = 50;

/** With less than this a handler might be started only to be cut off, which is an attempt: a later trigger has more. */
const leastMs = 5_000;

/**
 * Of all kicks of an isolate one is under way; what is published meanwhile is pulled for by one more after it, in the
 * latest of these requests, which has the most time left. Requests share nothing but what is written here, and look at it
 * by timers of their own: a promise that another request has to keep would not survive that request.
 */
export function createKicks<Of>(failed: (error: unknown) => void): Kicks<Of> {
  const due = new Set<Of>();
  let underWay: { readonly until: number } | undefined;
  let last: object | undefined;

  return {
    async kick(wanted, deadline, run) {
      if (wanted.length === 0) return;
      for (const one of wanted) due.add(one);
      const own = { until: deadline };
      last = own;
      while (underWay && Date.now() < underWay.until) {
        await pause(lookMs, "waiting for the kick under way");
        if (last !== own) return; // who came later sees to it
      }
      underWay = own;
      const all = [...due];
      due.clear();
      try {
        if (deadline - Date.now() >= leastMs) await run(all);
      } catch (error) {
        failed(error);
      } finally {
        if (underWay === own) underWay = undefined;
      }
    },
  };
}
