import { SortieError } from "../errors.ts";

/**
 * Every wait of an invocation is a point where it may be killed, frozen or cut off. A test sets `reached` to be told of
 * each, before the wait and after it.
 * @example
 * crashPoints.reached = (point, phase) => {
 *   if (phase === "before" && point === "confirming a settlement") process.exit(1);
 * };
 */
export const crashPoints: { reached?: (point: string, phase: "before" | "after") => void } = {};

/** A timer for longer would ring at once. */
export const longestMs = 0x7fffffff;

/** Waits for what ends by itself in time. */
export async function point<T>(what: string, promise: PromiseLike<T>): Promise<T> {
  crashPoints.reached?.(what, "before");
  try {
    return await promise;
  } finally {
    crashPoints.reached?.(what, "after");
  }
}

/** Waits that long, for better times. */
export function pause(ms: number, what: string): Promise<void> {
  return point(what, new Promise((resolve) => setTimeout(resolve, Math.max(0, ms))));
}

/** How long to wait after so many failures: twice as long each time, and never as long as others do. */
export function retryMs(failures: number, [leastMs, mostMs]: readonly [leastMs: number, mostMs: number]): number {
  return Math.min(leastMs * 2 ** failures, mostMs) * (0.5 + Math.random() / 2);
}

/**
 * Waits for `promise`, but no longer than `ms`: the NATS client's own promises can stay pending for ever.
 * @throws SortieError `timed-out` naming `what`; a later rejection of `promise` is ignored.
 */
export async function within<T>(ms: number, what: string, promise: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new SortieError("timed-out", `${what} took longer than the ${Math.round(ms)} ms it had`)),
      Math.max(0, Math.min(ms, longestMs)),
    );
  });
  try {
    return await point(what, Promise.race([promise, late]));
  } finally {
    clearTimeout(timer);
  }
}
