/* Runs the start page once when it opens, as "Run All Cells" does: its explorer lives in a kernel.
   A prebuilt extension of JupyterLab, without what a bundler would add: it needs no other module. */
(() => {
  const START = "00_start.ipynb";

  async function run(app, widget) {
    const { context } = widget;
    await context.ready;
    await context.sessionContext.ready;
    const done = app.commands.execute("notebook:run-all-cells");
    widget.content.activeCellIndex = 0; // it goes to the last cell; a person begins at the first
    await widget.content.scrollToItem(0);
    await done;
    context.model.dirty = false; // nothing of a person's own is in it: the file stays as it is
  }

  const plugin = {
    id: "poclib-start:plugin",
    autoStart: true,
    activate: (app) => {
      const shell = app.shell;
      const look = () => {
        const widget = shell.currentWidget;
        if (widget?.context?.path !== START) return;
        shell.currentChanged?.disconnect(look);
        run(app, widget).catch((error) => console.warn("The start page did not run:", error));
      };
      shell.currentChanged?.connect(look);
      app.restored.then(look);
    },
  };

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB["poclib-start"] = {
    init: () => {},
    get: () => Promise.resolve(() => ({ __esModule: true, default: plugin })),
  };
})();
