// A browser starts no worker from a file:// page. There this runs the worker's script in a hidden frame instead, so that
// the site's search works offline.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.frame = document.body.appendChild(document.createElement("iframe"));
      this.frame.hidden = true;
      this.inside = this.frame.contentWindow;
      this.inside.postMessage = (data) => setTimeout(() => this.onmessage?.({ data: structuredClone(data) }));
      const script = this.inside.document.createElement("script");
      this.loaded = new Promise((done, failed) => Object.assign(script, { onload: done, onerror: failed }));
      this.loaded.catch((error) => this.onerror?.(error));
      script.src = new URL(url, location);
      this.inside.document.head.append(script);
    }
    postMessage(data) {
      const copy = structuredClone(data);
      this.loaded.then(() => this.inside.onmessage?.({ data: copy }));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
