/**
 * Lets the handlers of an invocation run side by side, or one of them alone: a message whose function died is started
 * again with nothing beside it, so that it can be told apart from those that died with it.
 */
export interface Gate {
  /**
   * Whether a handler may start beside others. While one waits to run alone, those still may that will have ended, as far
   * as is known, before the slowest that it waits for: one slow consumer does not hold up the others.
   */
  admits(handlerMs: number | undefined): boolean;
  /** Calls back whenever the gate opens again. */
  onOpen(listener: () => void): void;
  /** A message is being handled, until it is settled and leaves; it will take about `handlerMs`, where that is known. */
  enter(handlerMs: number | undefined): void;
  /** Waits until nobody is inside; nobody else enters then before this one leaves. */
  enterAlone(): Promise<void>;
  leave(): void;
}

export function createGate(now: () => number): Gate {
  const listeners: (() => void)[] = [];
  const waiting: (() => void)[] = [];
  let inside = 0;
  let alone = false;
  let busyUntil = 0; // the slowest inside, as far as is known

  function admitOne(): void {
    const next = waiting.shift();
    alone = next !== undefined;
    if (!next) return;
    inside = 1;
    next();
  }

  return {
    admits(handlerMs) {
      if (alone) return false;
      return waiting.length === 0 || (handlerMs !== undefined && now() + handlerMs < busyUntil);
    },
    onOpen(listener) {
      listeners.push(listener);
    },
    enter(handlerMs = 0) {
      inside += 1;
      busyUntil = Math.max(busyUntil, now() + handlerMs);
    },
    enterAlone() {
      return new Promise((resolve) => {
        waiting.push(resolve);
        if (inside === 0) admitOne();
      });
    },
    leave() {
      inside -= 1;
      if (inside > 0) return;
      admitOne();
      if (!alone) for (const listener of listeners) listener();
    },
  };
}
