/**
 * Lets the handlers of an invocation run side by side, or one of them alone: a message whose function died is started
 * again with nothing beside it, so that it can be told apart from those that died with it.
 */
export interface Gate {
  /** Whether a handler may start beside others. */
  readonly open: boolean;
  /** Calls back whenever the gate opens again. */
  onOpen(listener: () => void): void;
  /** A message is being handled, until it is settled and leaves. */
  enter(): void;
  /** Waits until nobody is inside; nobody else enters then before this one leaves. */
  enterAlone(): Promise<void>;
  leave(): void;
}

export function createGate(): Gate {
  const listeners: (() => void)[] = [];
  const waiting: (() => void)[] = [];
  let inside = 0;
  let alone = false;

  function admitOne(): void {
    const next = waiting.shift();
    alone = next !== undefined;
    if (!next) return;
    inside = 1;
    next();
  }

  return {
    get open() {
      return !alone && waiting.length === 0;
    },
    onOpen(listener) {
      listeners.push(listener);
    },
    enter() {
      inside += 1;
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
