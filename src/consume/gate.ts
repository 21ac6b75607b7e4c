/**
 * Lets the handlers of an invocation run side by side, or one of them alone: a message whose function died is started
 * again with nothing beside it, so that it can be told apart from those that died with it.
 */
export interface Gate {
  /** Whether a handler may start beside others. */
  readonly open: boolean;
  /** Calls back whenever the gate opens again. */
  onOpen(listener: () => void): void;
  /** A message is being handled, until it is settled. */
  enter(): void;
  leave(): void;
  /** Does `work` once nobody is inside, one after the other. */
  alone<T>(work: () => Promise<T>): Promise<T>;
}

export function createGate(): Gate {
  const listeners: (() => void)[] = [];
  let inside = 0;
  let solos = 0;
  let turn: Promise<unknown> = Promise.resolve();
  let left = () => {};

  return {
    get open() {
      return solos === 0;
    },
    onOpen(listener) {
      listeners.push(listener);
    },
    enter() {
      inside += 1;
    },
    leave() {
      inside -= 1;
      if (inside === 0) left();
    },
    alone(work) {
      solos += 1;
      const mine = turn.then(async () => {
        if (inside > 0) {
          await new Promise<void>((resolve) => {
            left = resolve;
          });
        }
        try {
          return await work();
        } finally {
          solos -= 1;
          if (solos === 0) for (const listener of listeners) listener();
        }
      });
      turn = mine.catch(() => {});
      return mine;
    },
  };
}
