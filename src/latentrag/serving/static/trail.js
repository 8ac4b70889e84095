// The questions that were asked in this tab: Back and Forward lead through them.

const KEPT = 20;

export class Trail {
  /** on: show(request, answer) where the answer is still known; follow() where the address is all there is. */
  constructor(on) {
    this.known = new Map();
    this.next = 0;
    addEventListener("popstate", ({ state }) => {
      const entry = this.known.get(state?.asked);
      if (entry?.answer) on.show(entry.request, entry.answer);
      else on.follow();
    });
  }

  /** Another question is asked; it is the same step where the address stays what it is. */
  begin(request, address) {
    const isSame = location.pathname + location.hash === address && history.state?.asked !== undefined;
    this.entry = { request, answer: null };
    const asked = isSame ? history.state.asked : (this.next += 1);
    this.known.set(asked, this.entry);
    if (this.known.size > KEPT) this.known.delete(this.known.keys().next().value);
    history[isSame ? "replaceState" : "pushState"]({ asked }, "", address);
  }

  finish(answer) {
    this.entry.answer = answer;
  }

  /** What is pinned or left out has changed. */
  note(address) {
    history.replaceState(history.state, "", address);
  }
}
