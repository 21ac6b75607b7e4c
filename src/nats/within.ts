import { SortieError } from "../errors.ts";

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
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
    promise.catch(() => {});
  }
}
