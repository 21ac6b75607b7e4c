import { SortieError } from "../errors.ts";

/**
 * Every wait of an invocation for something outside of it is a point where it may be killed, frozen or cut off. A test
 * sets `reached` to be told of each, before the wait and after it.
 */
export const crashPoints: { reached?: (point: string, phase: "before" | "after") => void } = {};

/** Waits that long, for better times. */
export function pause(ms: number, what: string): Promise<void> {
  return within(ms + 60_000, what, new Promise((resolve) => setTimeout(resolve, Math.max(0, ms))));
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
      Math.max(0, ms),
    );
  });
  try {
    crashPoints.reached?.(what, "before");
    const result = await Promise.race([promise, late]);
    crashPoints.reached?.(what, "after");
    return result;
  } finally {
    clearTimeout(timer);
  }
}
