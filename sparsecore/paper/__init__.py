"""What only the book needs: settings, studies, figures and tables. The library never imports it."""
